package xdsresource

import (
	"net/url"
	"strings"
	"time"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/otlp"
)

// defaultExportTimeout bounds an export whose service has no timeout.
const defaultExportTimeout = 10 * time.Second

// collector decodes where OTLP data goes; one of grpc and http is set. What
// can't be executed is reported, and nil.
func (s *scope) collector(grpc *corev3pb.GrpcService, http *corev3pb.HttpService, path string) *otlp.Target {
	switch {
	case grpc != nil:
		s.push("grpc_service")
		defer s.pop()
		return s.grpcCollector(grpc, path)
	case http != nil:
		s.push("http_service")
		defer s.pop()
		return s.httpCollector(http)
	}
	return nil
}

func (s *scope) grpcCollector(m *corev3pb.GrpcService, path string) *otlp.Target {
	g := m.GetEnvoyGrpc()
	if g.GetClusterName() == "" {
		s.ignore("", "nothing is exported: only a cluster (envoy_grpc.cluster_name) can be called")
		return nil
	}
	if m.GetRetryPolicy() != nil || g.GetRetryPolicy() != nil {
		s.ignore("retry_policy", "a batch is sent up to four times, with its own back-off")
	}
	t := &otlp.Target{
		Cluster: g.GetClusterName(), Scheme: "http", Authority: g.GetAuthority(), Path: path, GRPC: true,
		Timeout: s.duration("timeout", m.GetTimeout(), defaultExportTimeout),
	}
	if t.Authority == "" {
		t.Authority = t.Cluster
	}
	for i, h := range m.GetInitialMetadata() {
		s.pushIndex("initial_metadata", i)
		t.Fields = s.fixedHeader(t.Fields, h)
		s.pop()
	}
	return t
}

func (s *scope) httpCollector(m *corev3pb.HttpService) *otlp.Target {
	uri := m.GetHttpUri().GetUri()
	if !strings.Contains(uri, "://") { // as istiod writes it: the cluster decides about TLS
		uri = "http://" + uri
	}
	u, err := url.Parse(uri)
	if err != nil || u.Host == "" || m.GetHttpUri().GetCluster() == "" {
		s.ignore("http_uri", "nothing is exported: a URI with a host, and a cluster, are needed")
		return nil
	}
	t := &otlp.Target{
		Cluster: m.GetHttpUri().GetCluster(), Scheme: u.Scheme, Authority: u.Host, Path: u.RequestURI(),
		Timeout: s.duration("http_uri.timeout", m.GetHttpUri().GetTimeout(), defaultExportTimeout),
	}
	s.formatters(m.GetFormatters())
	for i, h := range m.GetRequestHeadersToAdd() {
		s.pushIndex("request_headers_to_add", i)
		t.Fields = s.fixedHeader(t.Fields, h.GetHeader())
		s.pop()
	}
	return t
}

// fixedHeader appends h, if it can be sent.
func (s *scope) fixedHeader(out []otlp.Field, h *corev3pb.HeaderValue) []otlp.Field {
	name, value := strings.ToLower(h.GetKey()), h.GetValue()
	if len(h.GetRawValue()) > 0 {
		value = string(h.GetRawValue())
	}
	if name == "" || name[0] == ':' || name == "host" || name == "content-length" || name == "transfer-encoding" || name == "connection" {
		s.ignore("key", "the header is not sent: its name is not free to choose")
		return out
	}
	f, err := format.Compile(value)
	if err != nil {
		s.ignore("value", "the header is not sent: "+err.Error())
		return out
	}
	return append(out, otlp.Field{Name: name, Value: f})
}
