package headermutation

import (
	"errors"
	"fmt"

	mutation_rulesv3pb "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	header_mutationv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
	"github.com/fairlead-mesh/fairlead/filters/internal/headeredit"
)

const (
	typeURL         = "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"
	typeURLPerRoute = "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute"
)

// Config is Mutations, of the filter or of a route.
type Config struct{ Request, Response []headeredit.Edit }

// Decode implements filters.HTTPFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &header_mutationv3pb.HeaderMutation{}
	if err := decode.Strict(a, m); err != nil {
		return nil, err
	}
	decode.IgnoreSet(d, m, "the order of mutations stays as without it", "most_specific_header_mutations_wins")
	return convert(m.GetMutations())
}

// DecodeOverride implements filters.HTTPFactory.
func (Factory) DecodeOverride(a filters.Any, _ *filters.Decoding) (filters.Config, error) {
	m := &header_mutationv3pb.HeaderMutationPerRoute{}
	if err := decode.Strict(a, m); err != nil {
		return nil, err
	}
	return convert(m.GetMutations())
}

func convert(m *header_mutationv3pb.Mutations) (*Config, error) {
	if len(m.GetQueryParameterMutations()) > 0 {
		return nil, errors.New("mutations.query_parameter_mutations: not supported")
	}
	if len(m.GetRequestTrailersMutations()) > 0 || len(m.GetResponseTrailersMutations()) > 0 {
		return nil, errors.New("mutations: trailers cannot be changed")
	}
	for i, f := range m.GetFormatters() {
		return nil, fmt.Errorf("mutations.formatters[%d]: formatter %s is not supported", i, f.GetName())
	}
	c := &Config{}
	for _, l := range []struct {
		path string
		in   []*mutation_rulesv3pb.HeaderMutation
		out  *[]headeredit.Edit
	}{{"mutations.request_mutations", m.GetRequestMutations(), &c.Request}, {"mutations.response_mutations", m.GetResponseMutations(), &c.Response}} {
		edits, err := headeredit.DecodeMutations(l.in, l.path)
		if err != nil {
			return nil, err
		}
		*l.out = edits
	}
	return c, nil
}
