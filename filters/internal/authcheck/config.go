package authcheck

import (
	"errors"
	"fmt"
	"strings"
	"time"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3pb "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
)

// DecodeService converts a GrpcService but for its retry policy, which is retry.
// The default timeout is 200 ms.
func DecodeService(m *corev3pb.GrpcService, version corev3pb.ApiVersion, retry *filters.Retry) (*Service, error) {
	if version != corev3pb.ApiVersion_V3 {
		return nil, fmt.Errorf("transport_api_version: %s is not supported, it must be V3", version)
	}
	if m.GetGoogleGrpc() != nil {
		return nil, errors.New("grpc_service.google_grpc: not supported, name a cluster in envoy_grpc")
	}
	g := m.GetEnvoyGrpc()
	if g.GetClusterName() == "" {
		return nil, errors.New("grpc_service.envoy_grpc.cluster_name: must not be empty")
	}
	v := &Service{Cluster: g.GetClusterName(), Authority: g.GetAuthority(), Retry: retry}
	if v.Authority == "" {
		v.Authority = v.Cluster
	}
	if t := m.GetTimeout(); t == nil {
		v.Timeout = 200 * time.Millisecond
	} else if v.Timeout = t.AsDuration(); t.CheckValid() != nil || v.Timeout < 0 {
		return nil, fmt.Errorf("grpc_service.timeout: %s is not a duration from 0 on", t)
	}
	for i, h := range m.GetInitialMetadata() {
		name, value := strings.ToLower(h.GetKey()), h.GetValue()
		if len(h.GetRawValue()) > 0 {
			value = string(h.GetRawValue())
		}
		if !validName(name) || !validValue(value) || framing(name) || strings.HasPrefix(name, "grpc-") || name == "content-type" {
			return nil, fmt.Errorf("grpc_service.initial_metadata[%d]: header %q cannot be sent", i, name)
		}
		s, err := format.Compile(value)
		if err != nil {
			return nil, fmt.Errorf("grpc_service.initial_metadata[%d].value: %w", i, err)
		}
		v.Metadata = append(v.Metadata, Metadata{name, s})
	}
	return v, nil
}

// parseAnswer reads a CheckResponse.
func parseAnswer(b []byte) (*Answer, error) {
	m := &authv3pb.CheckResponse{}
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("ext_authz: the answer: %w", err)
	}
	a := &Answer{}
	switch {
	case m.GetStatus().GetCode() == 0:
		ok := m.GetOkResponse()
		a.Headers = headers(ok.GetHeaders())
		a.ResponseHeaders = headers(ok.GetResponseHeadersToAdd())
		for _, n := range ok.GetHeadersToRemove() {
			a.Remove = append(a.Remove, strings.ToLower(n))
		}
		for _, q := range ok.GetQueryParametersToSet() {
			a.SetQuery = append(a.SetQuery, [2]string{q.GetKey(), q.GetValue()})
		}
		a.RemoveQuery = ok.GetQueryParametersToRemove()
	case m.GetErrorResponse() != nil:
		a.Kind = Failed
		a.refusal(m.GetErrorResponse())
	default:
		a.Kind = Denied
		a.refusal(m.GetDeniedResponse())
	}
	md := m.GetDynamicMetadata()
	if old := m.GetOkResponse().GetDynamicMetadata(); old != nil {
		md = old
	}
	if len(md.GetFields()) > 0 {
		a.Metadata = make(map[string]any, len(md.GetFields())+1)
		for k, v := range md.GetFields() {
			a.Metadata[k] = v.AsInterface()
		}
	}
	return a, nil
}

func (a *Answer) refusal(m *authv3pb.DeniedHttpResponse) {
	a.Status, a.Body, a.Headers = int(m.GetStatus().GetCode()), m.GetBody(), headers(m.GetHeaders())
}

func headers(list []*corev3pb.HeaderValueOption) []Header {
	var out []Header
	for _, o := range list {
		h := Header{
			Name: strings.ToLower(o.GetHeader().GetKey()), Value: o.GetHeader().GetValue(),
			Append: o.GetAppend().GetValue(), HasAppend: o.GetAppend() != nil, Action: Action(o.GetAppendAction()),
		}
		if raw := o.GetHeader().GetRawValue(); len(raw) > 0 {
			h.Value = string(raw)
		}
		out = append(out, h)
	}
	return out
}
