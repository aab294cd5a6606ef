package grpcweb

import (
	"errors"

	grpc_webv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_web/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

const typeURL = "type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb"

// Config is the filter's configuration, which has no fields.
type Config struct{}

// Decode implements filters.HTTPFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	if err := decode.Into(a, &grpc_webv3pb.GrpcWeb{}, d); err != nil {
		return nil, err
	}
	return &Config{}, nil
}

// DecodeOverride implements filters.HTTPFactory.
func (Factory) DecodeOverride(filters.Any, *filters.Decoding) (filters.Config, error) {
	return nil, errors.New("grpc_web has no per-route configuration")
}
