package metadataexchange

import (
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	metadata_exchangepb "istio.io/api/envoy/config/filter/network/metadata_exchange"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

// typeURL is Envoy's name of the type, which istiod sends as a TypedStruct.
const typeURL = "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange"

// Config is the filter's configuration.
type Config struct {
	// Protocol is the ALPN name by which both sides agree to exchange metadata.
	Protocol string
	// Discovery asks the table of workloads about a peer that doesn't exchange.
	Discovery bool
	// Labels are labels of workloads that are told and kept besides Istio's own.
	Labels []string
}

// Decode implements filters.NetworkFactory and filters.UpstreamFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	c := &Config{}
	m := &metadata_exchangepb.MetadataExchange{}
	var err error
	if a.JSON {
		a.Value, c.Labels, err = splitJSON(a.Value)
	} else {
		a.Value, c.Labels, err = splitWire(a.Value)
	}
	if err != nil {
		return nil, err
	}
	if err := decode.Into(a, m, d); err != nil {
		return nil, err
	}
	if m.GetProtocol() == "" {
		return nil, errors.New("protocol: must not be empty")
	}
	c.Protocol, c.Discovery = m.GetProtocol(), m.GetEnableDiscovery()
	return c, nil
}

// labelsField is additional_labels, which Envoy's message has and that of
// Istio's API hasn't.
const labelsField = 3

// splitJSON takes additional_labels out of the JSON form.
func splitJSON(b []byte) (rest []byte, labels []string, err error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil || len(fields) == 0 {
		return b, nil, nil //nolint:nilerr // the decoder of the message says it
	}
	found := false
	for _, name := range [...]string{"additional_labels", "additionalLabels"} {
		raw, ok := fields[name]
		if !ok {
			continue
		}
		found = true
		var l []string
		if err := json.Unmarshal(raw, &l); err != nil {
			return nil, nil, fmt.Errorf("additional_labels: %w", err)
		}
		labels = append(labels, l...)
		delete(fields, name)
	}
	if !found {
		return b, nil, nil
	}
	rest, err = json.Marshal(fields)
	return rest, labels, err
}

// splitWire takes additional_labels out of the wire form.
func splitWire(b []byte) (rest []byte, labels []string, err error) {
	in := b
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		size := -1
		if n >= 0 {
			if size = protowire.ConsumeFieldValue(num, typ, b[n:]); size >= 0 {
				size += n
			}
		}
		if size < 0 {
			return in, nil, nil // the decoder of the message says it
		}
		if num == labelsField && typ == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(b[n:])
			labels = append(labels, string(v))
		} else {
			rest = append(rest, b[:size]...)
		}
		b = b[size:]
	}
	return rest, labels, nil
}
