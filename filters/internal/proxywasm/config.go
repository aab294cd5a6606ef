package proxywasm

import (
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
)

// grpcTarget is whom a guest calls.
type grpcTarget struct{ cluster, authority string }

// parseGRPCService reads the GrpcService that a guest names, as far as it is a
// cluster of the proxy's.
func parseGRPCService(b []byte) (grpcTarget, bool) {
	var m corev3pb.GrpcService
	if proto.Unmarshal(b, &m) != nil || m.GetEnvoyGrpc().GetClusterName() == "" {
		return grpcTarget{}, false
	}
	return grpcTarget{m.GetEnvoyGrpc().GetClusterName(), m.GetEnvoyGrpc().GetAuthority()}, true
}
