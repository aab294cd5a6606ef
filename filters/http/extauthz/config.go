package extauthz

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	mutation_rulesv3pb "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ext_authzv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	matcherv3pb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/authcheck"
	"github.com/fairlead-mesh/fairlead/filters/internal/authz"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

const (
	typeURL         = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"
	typeURLPerRoute = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute"
)

// Config is ExtAuthz.
type Config struct {
	// One of HTTP and GRPC is set.
	HTTP *HTTPService
	GRPC *authcheck.Service
	// Enabled, if not nil, is the metadata that switches the check on.
	Enabled       *authz.Metadata
	EnabledPPM    uint32
	DenyDisabled  bool
	AllowOnError  bool
	HeaderOnError bool
	StatusOnError int
	Body          *Body
	ClearRoute    bool
	// ClearRouteHeaders, if not empty, are the only headers whose change clears
	// the route; lower case.
	ClearRouteHeaders []string
	// Tell is what gRPC services are told; its LabelsKey names the node metadata
	// that becomes labels of the destination.
	Tell      authcheck.Telling
	LabelsKey string
	// Rules, if not nil, say which headers a service may change.
	Rules *Rules
	// Strict refuses query parameters that need escaping.
	Strict bool
	// NoMetadata leaves dynamic metadata of answers out.
	NoMetadata bool
	// MaxDeniedBody cuts bodies of refusals; 0: no limit.
	MaxDeniedBody int
	StatPrefix    string
	// Allowed and Disallowed choose the request headers to send; nil Allowed
	// means Envoy's default.
	Allowed, Disallowed []matcher.String
}

// Body is with_request_body.
type Body struct {
	Max          int
	AllowPartial bool
}

// Rules is HeaderMutationRules.
type Rules struct {
	AllowRouting, AllowEnvoy, DenySystem, DenyAll, IsError bool
	// Allow and Deny are nil if there is no such expression.
	Allow, Deny *regexp.Regexp
}

// HTTPService is an authorization service that speaks HTTP.
type HTTPService struct {
	Cluster, Scheme    string
	PathPrefix, Path   string // Path replaces the request's path if not ""
	Timeout            time.Duration
	Retry              *filters.Retry // nil: none
	Add                [][2]string
	UpstreamHeaders    []matcher.String // of an OK answer, for the request
	UpstreamAppend     []matcher.String
	ClientHeaders      []matcher.String // of a refusal, for the client
	AllClientHeaders   bool
	ClientHeadersOnOK  []matcher.String
	MetadataHeaders    []matcher.String // of an OK answer, for dynamic metadata
	AllowedFromService []matcher.String // deprecated place of Config.Allowed
}

// Override is ExtAuthzPerRoute.
type Override struct {
	Disabled bool
	NoBody   bool
	Body     *Body
	// HTTP or GRPC, if not nil, is asked instead of the filter's service.
	HTTP *HTTPService
	GRPC *authcheck.Service
	// Extensions are context extensions, those of more general routes included.
	Extensions map[string]string
}

// Decode implements filters.HTTPFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &ext_authzv3pb.ExtAuthz{}
	if err := decode.Strict(a, m); err != nil {
		return nil, err
	}
	c := &Config{
		AllowOnError: m.GetFailureModeAllow(), HeaderOnError: m.GetFailureModeAllowHeaderAdd(), StatusOnError: 403,
		DenyDisabled: m.GetDenyAtDisable().GetDefaultValue().GetValue(), ClearRoute: m.GetClearRouteCache(),
		NoMetadata:    m.GetEnableDynamicMetadataIngestion() != nil && !m.GetEnableDynamicMetadataIngestion().GetValue(),
		MaxDeniedBody: int(m.GetMaxDeniedResponseBodyBytes()), StatPrefix: m.GetStatPrefix(), Strict: m.GetValidateMutations(), LabelsKey: m.GetBootstrapMetadataLabelsKey(),
	}
	for _, n := range m.GetClearRouteCacheHeaders() {
		c.ClearRouteHeaders = append(c.ClearRouteHeaders, strings.ToLower(n))
	}
	c.Tell = authcheck.Telling{
		PeerCertificate: m.GetIncludePeerCertificate(), TLSSession: m.GetIncludeTlsSession(), RawHeaders: m.GetEncodeRawHeaders(),
		BodyAsBytes: m.GetWithRequestBody().GetPackAsBytes(), Namespaces: m.GetMetadataContextNamespaces(),
		RouteNamespaces: m.GetRouteMetadataContextNamespaces(), AllowedSet: m.GetAllowedHeaders() != nil,
	}
	ignored(m, d)
	if s := int(m.GetStatusOnError().GetCode()); s != 0 {
		if s < 400 {
			return nil, fmt.Errorf("status_on_error.code: %d does not refuse", s)
		}
		c.StatusOnError = s
	}
	if m.GetShadowMode() {
		return nil, errors.New("shadow_mode: not supported, a check whose answer has no effect looks like protection; leave it out, or record with shadow_rules of RBAC")
	}
	var err error
	if m.GetFilterEnabledMetadata() != nil {
		md, err := authz.DecodeMetadata(m.GetFilterEnabledMetadata())
		if err != nil {
			return nil, fmt.Errorf("filter_enabled_metadata.%w", err)
		}
		c.Enabled = &md
	}
	if c.EnabledPPM, err = decode.RuntimePartsPerMillion(m.GetFilterEnabled(), 1_000_000, "filter_enabled", d); err != nil {
		return nil, fmt.Errorf("filter_enabled.default_value: %w", err)
	}
	if c.Body, err = decodeBody(m.GetWithRequestBody()); err != nil {
		return nil, fmt.Errorf("with_request_body.%w", err)
	}
	if c.Allowed, err = list(m.GetAllowedHeaders(), "allowed_headers"); err != nil {
		return nil, err
	}
	if c.Disallowed, err = list(m.GetDisallowedHeaders(), "disallowed_headers"); err != nil {
		return nil, err
	}
	c.Tell.Allowed, c.Tell.Disallowed = c.Allowed, c.Disallowed
	if c.Rules, err = decodeRules(m.GetDecoderHeaderMutationRules()); err != nil {
		return nil, fmt.Errorf("decoder_header_mutation_rules.%w", err)
	}
	switch x := m.GetServices().(type) {
	case *ext_authzv3pb.ExtAuthz_HttpService:
		if c.HTTP, err = decodeService(x.HttpService, d); err != nil {
			return nil, fmt.Errorf("http_service.%w", err)
		}
	case *ext_authzv3pb.ExtAuthz_GrpcService:
		if c.GRPC, err = decodeGRPC(x.GrpcService, m.GetTransportApiVersion(), d); err != nil {
			return nil, err
		}
	default:
		return nil, errors.New("services: an authorization service is required")
	}
	return c, nil
}

// ignored reports what has no effect.
func ignored(m *ext_authzv3pb.ExtAuthz, d *filters.Decoding) {
	for _, f := range []struct {
		set          bool
		path, reason string
	}{
		{len(m.GetTypedMetadataContextNamespaces()) > 0, "typed_metadata_context_namespaces", "there is no typed metadata"},
		{len(m.GetRouteTypedMetadataContextNamespaces()) > 0, "route_typed_metadata_context_namespaces", "there is no typed metadata"},
		{m.GetFilterMetadata() != nil, "filter_metadata", "the filter state is not filled for logs"},
		{m.GetEmitFilterStateStats(), "emit_filter_state_stats", "the filter state is not filled for logs"},
		{m.GetEnforceResponseHeaderLimits(), "enforce_response_header_limits", "the codec's own limits hold"},
		{m.GetChargeClusterResponseStats() != nil, "charge_cluster_response_stats", "refusals are counted by the filter, not by the cluster"},
		{m.GetEmitClientSpan() != nil, "emit_client_span", "checks have no spans"},
	} {
		if f.set {
			d.Ignore(f.path, f.reason)
		}
	}
}

func decodeRules(m *mutation_rulesv3pb.HeaderMutationRules) (*Rules, error) {
	if m == nil {
		return nil, nil //nolint:nilnil // every header may change
	}
	r := &Rules{
		AllowRouting: m.GetAllowAllRouting().GetValue(), AllowEnvoy: m.GetAllowEnvoy().GetValue(), DenySystem: m.GetDisallowSystem().GetValue(),
		DenyAll: m.GetDisallowAll().GetValue(), IsError: m.GetDisallowIsError().GetValue(),
	}
	for _, x := range []struct {
		path string
		in   *matcherv3pb.RegexMatcher
		out  **regexp.Regexp
	}{{"allow_expression", m.GetAllowExpression(), &r.Allow}, {"disallow_expression", m.GetDisallowExpression(), &r.Deny}} {
		if x.in == nil {
			continue
		}
		re, err := matcher.CompileSafeRegex(x.in.GetRegex())
		if err != nil {
			return nil, fmt.Errorf("%s.regex: %w", x.path, err)
		}
		*x.out = re
	}
	return r, nil
}

// DecodeOverride implements filters.HTTPFactory.
func (Factory) DecodeOverride(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &ext_authzv3pb.ExtAuthzPerRoute{}
	if err := decode.Strict(a, m); err != nil {
		return nil, err
	}
	switch x := m.GetOverride().(type) {
	case *ext_authzv3pb.ExtAuthzPerRoute_Disabled:
		if !x.Disabled {
			return nil, errors.New("disabled: must be true")
		}
		return &Override{Disabled: true}, nil
	case *ext_authzv3pb.ExtAuthzPerRoute_CheckSettings:
		o := &Override{NoBody: x.CheckSettings.GetDisableRequestBodyBuffering(), Extensions: x.CheckSettings.GetContextExtensions()}
		var err error
		if o.NoBody && x.CheckSettings.GetWithRequestBody() != nil {
			return nil, errors.New("check_settings: disable_request_body_buffering and with_request_body exclude each other")
		}
		if x.CheckSettings.GetWithRequestBody().GetPackAsBytes() {
			d.Ignore("check_settings.with_request_body.pack_as_bytes", "the filter's own setting holds for all routes, as in Envoy")
		}
		if o.Body, err = decodeBody(x.CheckSettings.GetWithRequestBody()); err != nil {
			return nil, fmt.Errorf("check_settings.with_request_body.%w", err)
		}
		if x.CheckSettings.GetEmitClientSpan() != nil {
			d.Ignore("check_settings.emit_client_span", "checks have no spans")
		}
		switch v := x.CheckSettings.GetServiceOverride().(type) {
		case *ext_authzv3pb.CheckSettings_GrpcService:
			o.GRPC, err = decodeGRPC(v.GrpcService, corev3pb.ApiVersion_V3, d)
		case *ext_authzv3pb.CheckSettings_HttpService:
			if o.HTTP, err = decodeService(v.HttpService, d); err != nil {
				err = fmt.Errorf("http_service.%w", err)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("check_settings.%w", err)
		}
		return o, nil
	}
	return nil, errors.New("override: must not be empty")
}

const maxBody = 16 << 20

func decodeBody(m *ext_authzv3pb.BufferSettings) (*Body, error) {
	if m == nil {
		return nil, nil //nolint:nilnil // no body is sent
	}
	if n := m.GetMaxRequestBytes(); n == 0 || n > maxBody {
		return nil, fmt.Errorf("max_request_bytes: %d is not between 1 and %d", n, maxBody)
	}
	return &Body{Max: int(m.GetMaxRequestBytes()), AllowPartial: m.GetAllowPartialMessage()}, nil
}

func decodeGRPC(m *corev3pb.GrpcService, version corev3pb.ApiVersion, d *filters.Decoding) (*authcheck.Service, error) {
	retry, err := decode.GRPCRetry(m, d)
	if err != nil {
		return nil, err
	}
	return authcheck.DecodeService(m, version, retry)
}

func decodeService(m *ext_authzv3pb.HttpService, d *filters.Decoding) (*HTTPService, error) {
	u, err := url.Parse(m.GetServerUri().GetUri())
	if err != nil {
		return nil, fmt.Errorf("server_uri.uri: %w", err)
	}
	s := &HTTPService{Cluster: m.GetServerUri().GetCluster(), Scheme: u.Scheme, PathPrefix: m.GetPathPrefix(), Path: m.GetPathOverride()}
	if s.Cluster == "" {
		return nil, errors.New("server_uri.cluster: must not be empty")
	}
	if s.Scheme == "" {
		s.Scheme = "http"
	}
	if s.PathPrefix != "" && s.Path != "" {
		return nil, errors.New("path_override: path_prefix is set too")
	}
	if s.Path != "" && !strings.HasPrefix(s.Path, "/") {
		return nil, errors.New("path_override: must begin with a slash")
	}
	if s.PathPrefix != "" && !strings.HasPrefix(s.PathPrefix, "/") {
		return nil, errors.New("path_prefix: must begin with a slash")
	}
	if s.Timeout, err = decode.Duration(m.GetServerUri().GetTimeout(), 200*time.Millisecond); err != nil {
		return nil, fmt.Errorf("server_uri.timeout: %w", err)
	}
	if s.Retry, err = decode.Retry(m.GetRetryPolicy(), "http_service.retry_policy", d); err != nil {
		return nil, fmt.Errorf("retry_policy.%w", err)
	}
	rq, rs := m.GetAuthorizationRequest(), m.GetAuthorizationResponse()
	for i, h := range rq.GetHeadersToAdd() {
		kv, err := header(h)
		if err != nil {
			return nil, fmt.Errorf("authorization_request.headers_to_add[%d]: %w", i, err)
		}
		s.Add = append(s.Add, kv)
	}
	s.AllClientHeaders = rs.GetAllowedClientHeaders() == nil
	for _, l := range []struct {
		path string
		in   *matcherv3pb.ListStringMatcher
		out  *[]matcher.String
	}{
		{"authorization_request.allowed_headers", rq.GetAllowedHeaders(), &s.AllowedFromService},
		{"authorization_response.allowed_upstream_headers", rs.GetAllowedUpstreamHeaders(), &s.UpstreamHeaders},
		{"authorization_response.allowed_upstream_headers_to_append", rs.GetAllowedUpstreamHeadersToAppend(), &s.UpstreamAppend},
		{"authorization_response.allowed_client_headers", rs.GetAllowedClientHeaders(), &s.ClientHeaders},
		{"authorization_response.allowed_client_headers_on_success", rs.GetAllowedClientHeadersOnSuccess(), &s.ClientHeadersOnOK},
		{"authorization_response.dynamic_metadata_from_headers", rs.GetDynamicMetadataFromHeaders(), &s.MetadataHeaders},
	} {
		if *l.out, err = list(l.in, l.path); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func header(h *corev3pb.HeaderValue) ([2]string, error) {
	k := strings.ToLower(h.GetKey())
	if k == "" || k[0] == ':' || strings.ContainsAny(h.GetValue(), "\r\n\x00") {
		return [2]string{}, fmt.Errorf("header %q cannot be added", k)
	}
	return [2]string{k, h.GetValue()}, nil
}

func list(m *matcherv3pb.ListStringMatcher, path string) ([]matcher.String, error) {
	if m == nil {
		return nil, nil
	}
	l, err := matcher.StringsFromProto(m.GetPatterns())
	if err != nil {
		return nil, fmt.Errorf("%s.patterns%w", path, err)
	}
	return l, nil
}
