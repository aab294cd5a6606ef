package peermetadata

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
)

// typeURL has no Go proto: istiod sends the configuration as a TypedStruct.
const typeURL = "type.googleapis.com/io.istio.http.peer_metadata.Config"

// Method is a way to find or tell a peer.
type Method uint8

// Methods of discovery and propagation.
const (
	WorkloadDiscovery Method = iota + 1
	IstioHeaders
	Baggage
	UpstreamFilterState
)

// Config is the filter's configuration.
type Config struct {
	DownstreamDiscovery, UpstreamDiscovery     []Step
	DownstreamPropagation, UpstreamPropagation []Step
	SharedWithUpstream                         bool
	AdditionalLabels                           []string
}

// Step is one method with its options.
type Step struct {
	Method Method
	// Key is the filter-state key of UpstreamFilterState.
	Key string
	// SkipExternal leaves out Istio's headers towards external clusters.
	SkipExternal bool
}

type jsonStep struct {
	WorkloadDiscovery *struct{} `json:"workload_discovery"`
	IstioHeaders      *struct {
		SkipExternalClusters bool `json:"skip_external_clusters"`
	} `json:"istio_headers"`
	Baggage             *struct{} `json:"baggage"`
	UpstreamFilterState *struct {
		PeerMetadataKey string `json:"peer_metadata_key"`
	} `json:"upstream_filter_state"`
}

type jsonConfig struct {
	DownstreamDiscovery   []jsonStep `json:"downstream_discovery"`
	UpstreamDiscovery     []jsonStep `json:"upstream_discovery"`
	DownstreamPropagation []jsonStep `json:"downstream_propagation"`
	UpstreamPropagation   []jsonStep `json:"upstream_propagation"`
	SharedWithUpstream    bool       `json:"shared_with_upstream"`
	AdditionalLabels      []string   `json:"additional_labels"`
}

// Decode implements filters.HTTPFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	if !a.JSON {
		return nil, errors.New("peer_metadata: only the TypedStruct form is supported")
	}
	in := &jsonConfig{}
	if err := unmarshal(a.Value, in, d); err != nil {
		return nil, fmt.Errorf("peer_metadata: %w", err)
	}
	c := &Config{SharedWithUpstream: in.SharedWithUpstream, AdditionalLabels: in.AdditionalLabels}
	for _, l := range []struct {
		name string
		in   []jsonStep
		out  *[]Step
	}{
		{"downstream_discovery", in.DownstreamDiscovery, &c.DownstreamDiscovery},
		{"upstream_discovery", in.UpstreamDiscovery, &c.UpstreamDiscovery},
		{"downstream_propagation", in.DownstreamPropagation, &c.DownstreamPropagation},
		{"upstream_propagation", in.UpstreamPropagation, &c.UpstreamPropagation},
	} {
		for i, j := range l.in {
			path := fmt.Sprintf("%s[%d]", l.name, i)
			s, err := step(j)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			why := pointless(l.name, s.Method)
			if s.Method == 0 {
				why = "no method that this version knows"
			}
			if why != "" {
				d.Ignore(path, why)
				continue
			}
			*l.out = append(*l.out, s)
		}
	}
	return c, nil
}

func step(j jsonStep) (Step, error) {
	var s Step
	n := 0
	if j.WorkloadDiscovery != nil {
		s.Method, n = WorkloadDiscovery, n+1
	}
	if j.IstioHeaders != nil {
		s.Method, s.SkipExternal, n = IstioHeaders, j.IstioHeaders.SkipExternalClusters, n+1
	}
	if j.Baggage != nil {
		s.Method, n = Baggage, n+1
	}
	if j.UpstreamFilterState != nil {
		s.Method, s.Key, n = UpstreamFilterState, j.UpstreamFilterState.PeerMetadataKey, n+1
	}
	if n > 1 {
		return s, fmt.Errorf("want one method, have %d", n)
	}
	return s, nil
}

// unmarshal decodes the JSON form of a message, whose fields have their proto
// names or those in camelCase, and reports what is unknown: the filter serves
// telemetry, and what it can't do must not stop traffic.
func unmarshal(b []byte, into *jsonConfig, d *filters.Decoding) error {
	var doc any
	if err := json.Unmarshal(b, &doc); err != nil {
		return err
	}
	b, err := json.Marshal(protoNames(doc))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return err
	}
	strict := json.NewDecoder(bytes.NewReader(b))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&jsonConfig{}); err != nil {
		d.Ignore("", err.Error()+": not known to this version")
	}
	return nil
}

// protoNames renames the fields of all objects in doc.
func protoNames(doc any) any {
	switch x := doc.(type) {
	case map[string]any:
		out := make(map[string]any, len(x))
		for k, v := range x {
			out[snake(k)] = protoNames(v)
		}
		return out
	case []any:
		for i := range x {
			x[i] = protoNames(x[i])
		}
	}
	return doc
}

func snake(camel string) string {
	var b strings.Builder
	for i := range len(camel) {
		c := camel[i]
		if c >= 'A' && c <= 'Z' {
			b.WriteByte('_')
			c += 'a' - 'A'
		}
		b.WriteByte(c)
	}
	return b.String()
}

func pointless(list string, m Method) string {
	switch {
	case list == "upstream_discovery" && m == Baggage:
		return "baggage describes downstream peers only"
	case list == "downstream_discovery" && m == UpstreamFilterState:
		return "upstream filter state describes upstream peers only"
	case (list == "downstream_propagation" || list == "upstream_propagation") && (m == WorkloadDiscovery || m == UpstreamFilterState):
		return "not a method of propagation"
	}
	return ""
}

// DecodeOverride implements filters.HTTPFactory.
func (Factory) DecodeOverride(filters.Any, *filters.Decoding) (filters.Config, error) {
	return nil, errors.New("peer_metadata has no per-route configuration")
}
