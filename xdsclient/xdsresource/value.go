package xdsresource

import (
	"errors"
	"math"
	"net/netip"
	"strings"
	"time"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3pb "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// duration returns d, or def if it is unset. Negative ones are rejected.
func (s *scope) duration(field string, d *durationpb.Duration, def time.Duration) time.Duration {
	if d == nil {
		return def
	}
	if err := d.CheckValid(); err != nil {
		s.reject(field, err)
		return def
	}
	v := d.AsDuration()
	if v < 0 {
		s.errorf(field, "must not be negative")
	}
	return v
}

// durationPtr returns nil if d is unset.
func (s *scope) durationPtr(field string, d *durationpb.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	v := s.duration(field, d, 0)
	return &v
}

func u32(w *wrapperspb.UInt32Value, def uint32) uint32 {
	if w == nil {
		return def
	}
	return w.GetValue()
}

func boolean(w *wrapperspb.BoolValue, def bool) bool {
	if w == nil {
		return def
	}
	return w.GetValue()
}

// percent returns a percentage in [0, 100].
func percent(p *typev3pb.Percent, def float64) float64 {
	if p == nil {
		return def
	}
	return math.Max(0, math.Min(100, p.GetValue()))
}

// fraction returns a share in [0, 1].
func fraction(p *typev3pb.FractionalPercent) float64 {
	den := 100.0
	switch p.GetDenominator() {
	case typev3pb.FractionalPercent_HUNDRED:
	case typev3pb.FractionalPercent_TEN_THOUSAND:
		den = 10_000
	case typev3pb.FractionalPercent_MILLION:
		den = 1_000_000
	}
	return math.Min(1, float64(p.GetNumerator())/den)
}

// runtimeFraction returns the default value; there is no runtime.
func (s *scope) runtimeFraction(p *corev3pb.RuntimeFractionalPercent, def float64) float64 {
	if p.GetDefaultValue() == nil {
		return def
	}
	return fraction(p.GetDefaultValue())
}

// addrPort returns an IP address; names are rejected with hint.
func (s *scope) addrPort(field string, a *corev3pb.SocketAddress, hint string) netip.AddrPort {
	s.push(field)
	defer s.pop()
	if a.GetProtocol() == corev3pb.SocketAddress_UDP {
		s.errorf("protocol", "UDP is not supported")
	}
	ip, err := netip.ParseAddr(a.GetAddress())
	if err != nil {
		s.errorf("address", "%q is not an IP address%s", a.GetAddress(), hint)
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip, s.port(a))
}

func (s *scope) port(a *corev3pb.SocketAddress) uint16 {
	if a.GetNamedPort() != "" {
		s.errorf("named_port", "is not supported: use port_value")
	}
	if a.GetPortValue() > math.MaxUint16 {
		s.errorf("port_value", "must be at most 65535")
		return 0
	}
	return uint16(a.GetPortValue())
}

// metadata converts static metadata.
func (s *scope) metadata(m *corev3pb.Metadata) Metadata {
	if len(m.GetFilterMetadata()) == 0 {
		return Metadata{}
	}
	out := make(map[string]map[string]any, len(m.GetFilterMetadata()))
	for ns, v := range m.GetFilterMetadata() {
		out[ns] = structMap(v)
	}
	return streaminfo.MetadataFrom(out)
}

func structMap(v *structpb.Struct) map[string]any {
	if len(v.GetFields()) == 0 {
		return nil
	}
	return v.AsMap()
}

// configSource converts cs; Envoy's self means: the same source.
func (s *scope) configSource(field string, cs *corev3pb.ConfigSource) ConfigSource {
	if field != "" {
		s.push(field)
		defer s.pop()
	}
	var out ConfigSource
	switch c := cs.GetConfigSourceSpecifier().(type) {
	case *corev3pb.ConfigSource_Ads, *corev3pb.ConfigSource_Self:
		out.ADS = true
	case *corev3pb.ConfigSource_PathConfigSource:
		out.Path = c.PathConfigSource.GetPath()
		out.Watch = c.PathConfigSource.GetWatchedDirectory().GetPath()
	case *corev3pb.ConfigSource_Path:
		out.Path = c.Path
	case *corev3pb.ConfigSource_ApiConfigSource:
		s.push("api_config_source")
		out.APIServer = s.apiServer(c.ApiConfigSource)
		s.pop()
	}
	return out
}

// apiServer decodes api_config_source: a gRPC stream for one type.
func (s *scope) apiServer(c *corev3pb.ApiConfigSource) (out APIServer) {
	switch c.GetApiType() {
	case corev3pb.ApiConfigSource_GRPC:
		out.StateOfTheWorld = true
	case corev3pb.ApiConfigSource_DELTA_GRPC:
	case corev3pb.ApiConfigSource_AGGREGATED_GRPC, corev3pb.ApiConfigSource_AGGREGATED_DELTA_GRPC,
		corev3pb.ApiConfigSource_REST, corev3pb.ApiConfigSource_DEPRECATED_AND_UNAVAILABLE_DO_NOT_USE:
		s.errorf("api_type", "%s is not supported: use DELTA_GRPC or GRPC", c.GetApiType())
		return out
	}
	if len(c.GetGrpcServices()) != 1 {
		s.errorf("grpc_services", "want exactly one, not %d", len(c.GetGrpcServices()))
		return out
	}
	g := c.GetGrpcServices()[0]
	if g.GetEnvoyGrpc() == nil {
		s.errorf("grpc_services[0]", "only envoy_grpc is supported")
		return out
	}
	for _, h := range g.GetInitialMetadata() {
		out.Metadata += strings.ToLower(h.GetKey()) + "\n" + h.GetValue() + "\n"
	}
	out.Cluster = g.GetEnvoyGrpc().GetClusterName()
	return out
}

// SourceOf decodes a ConfigSource of a bootstrap. The errors are *FieldErrors.
func SourceOf(cs *corev3pb.ConfigSource) (ConfigSource, error) {
	s := &scope{}
	out := s.configSource("", cs)
	return out, errors.Join(s.errs...)
}

// data reads a DataSource, nil if it is unset.
func (s *scope) data(field string, d *corev3pb.DataSource) []byte {
	switch v := d.GetSpecifier().(type) {
	case *corev3pb.DataSource_InlineBytes:
		return v.InlineBytes
	case *corev3pb.DataSource_InlineString:
		return []byte(v.InlineString)
	case *corev3pb.DataSource_Filename:
		b, err := s.d.opts.ReadFile(v.Filename)
		if err != nil {
			s.reject(field+".filename", err)
		}
		return b
	case *corev3pb.DataSource_EnvironmentVariable:
		e, ok := s.d.opts.LookupEnv(v.EnvironmentVariable)
		if !ok {
			s.errorf(field+".environment_variable", "%s is not set", v.EnvironmentVariable)
		}
		return []byte(e)
	}
	return nil
}

// format compiles a substitution string; what can't be compiled is
// unsupported.
func (s *scope) format(field, src string) *format.String {
	f, err := format.Compile(src)
	s.unsupportedErr(field, err)
	return f
}

// headerMutations converts the add and remove lists of one place; prefix is
// "request_headers" or "response_headers".
func (s *scope) headerMutations(prefix string, add []*corev3pb.HeaderValueOption, remove []string) HeaderMutations {
	out := HeaderMutations{Add: s.headersToAdd(prefix+"_to_add", add)}
	for i, h := range remove {
		h = strings.ToLower(h)
		if strings.HasPrefix(h, ":") || h == "host" {
			s.errorf(prefix+"_to_remove", "[%d]: :-prefixed or host headers may not be removed", i)
		}
		out.Remove = append(out.Remove, h)
	}
	return out
}

func (s *scope) headersToAdd(field string, add []*corev3pb.HeaderValueOption) []HeaderMutation {
	if len(add) == 0 {
		return nil
	}
	out := make([]HeaderMutation, 0, len(add))
	for i, h := range add {
		s.pushIndex(field, i)
		m := HeaderMutation{
			Name:      strings.ToLower(h.GetHeader().GetKey()),
			Action:    s.appendAction(h),
			KeepEmpty: h.GetKeepEmptyValue(),
		}
		if m.Name == "host" || strings.HasPrefix(m.Name, ":") {
			s.errorf("header.key", ":-prefixed or host headers may not be modified")
		}
		value := h.GetHeader().GetValue()
		if raw := h.GetHeader().GetRawValue(); value == "" && len(raw) > 0 {
			value = strings.ReplaceAll(string(raw), "%", "%%")
		}
		m.Value = s.format("header.value", value)
		out = append(out, m)
		s.pop()
	}
	return out
}

func (s *scope) appendAction(h *corev3pb.HeaderValueOption) AppendAction {
	if h.GetAppend() != nil {
		if h.GetAppendAction() != corev3pb.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD {
			s.errorf("append", "must not be set together with append_action")
		}
		if !h.GetAppend().GetValue() {
			return OverwriteIfExistsOrAdd
		}
		return AppendIfExistsOrAdd
	}
	switch h.GetAppendAction() {
	case corev3pb.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
		return AppendIfExistsOrAdd
	case corev3pb.HeaderValueOption_ADD_IF_ABSENT:
		return AddIfAbsent
	case corev3pb.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
		return OverwriteIfExistsOrAdd
	case corev3pb.HeaderValueOption_OVERWRITE_IF_EXISTS:
		return OverwriteIfExists
	}
	s.errorf("append_action", "unknown value %d", h.GetAppendAction())
	return AppendIfExistsOrAdd
}

// prefixes converts a list of CIDR ranges.
func (s *scope) prefixes(field string, ms []*corev3pb.CidrRange) []netip.Prefix {
	ps, err := matcher.CIDRsFromProto(ms)
	s.unsupportedErr(field, err) // Envoy accepts broken ranges, which match nothing
	return ps
}

func mapEach[M, T any](ms []M, f func(i int, m M) T) []T {
	if len(ms) == 0 {
		return nil
	}
	out := make([]T, 0, len(ms))
	for i, m := range ms {
		out = append(out, f(i, m))
	}
	return out
}
