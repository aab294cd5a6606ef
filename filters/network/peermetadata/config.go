package peermetadata

import (
	"encoding/json"
	"fmt"

	"github.com/fairlead-mesh/fairlead/filters"
)

// typeURL has no Go proto: istiod sends the configuration as a TypedStruct.
const typeURL = "type.googleapis.com/envoy.extensions.network_filters.peer_metadata.Config"

// Config is the filter's configuration.
type Config struct {
	// BaggageKey is the filter state that gets this workload's baggage, "" for
	// none.
	BaggageKey string
}

// Decode implements filters.NetworkFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	if !a.JSON {
		return nil, fmt.Errorf("%s: want a TypedStruct", typeURL)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(a.Value, &fields); err != nil {
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
