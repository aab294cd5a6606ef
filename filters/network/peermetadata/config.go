package peermetadata

import (
	"encoding/json"
	"fmt"

	"github.com/fairlead-mesh/fairlead/filters"
)

// The types have no Go proto: istiod sends the configurations as TypedStructs.
const (
	typeURL         = "type.googleapis.com/envoy.extensions.network_filters.peer_metadata.Config"
	upstreamTypeURL = "type.googleapis.com/envoy.extensions.network_filters.peer_metadata.UpstreamConfig"
)

// Config is the configuration of a listener's filter.
type Config struct {
	// BaggageKey is the filter state that gets this workload's baggage, "" for
	// none.
	BaggageKey string
}

// UpstreamConfig is the configuration of a cluster's filter: there is nothing to
// configure.
type UpstreamConfig struct{}

// Decode implements filters.NetworkFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	fields, err := object(a, typeURL)
	if err != nil {
		return nil, err
	}
	c := &Config{}
	for _, name := range []string{"baggage_key", "baggageKey"} {
		raw, ok := fields[name]
		if !ok {
			continue
		}
		delete(fields, name)
		if err := json.Unmarshal(raw, &c.BaggageKey); err != nil {
			return nil, fmt.Errorf("baggage_key: %w", err)
		}
	}
	for name := range fields {
		d.Ignore(name, "field is unknown to this version")
	}
	return c, nil
}

// Decode implements filters.UpstreamFactory.
func (UpstreamFactory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	fields, err := object(a, upstreamTypeURL)
	if err != nil {
		return nil, err
	}
	for name := range fields {
		d.Ignore(name, "field is unknown to this version")
	}
	return &UpstreamConfig{}, nil
}

func object(a filters.Any, typeURL string) (fields map[string]json.RawMessage, err error) {
	if !a.JSON {
		return nil, fmt.Errorf("%s: want a TypedStruct", typeURL)
	}
	err = json.Unmarshal(a.Value, &fields)
	return fields, err
}
