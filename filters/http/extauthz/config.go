package extauthz

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ext_authzv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	matcherv3pb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/fairlead-mesh/fairlead/filters"
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
	// HTTP is nil if the configured service is one that can't be called (gRPC):
	// requests that it concerns are refused.
	HTTP *HTTPService
	// Enabled, if not nil, is the metadata that switches the check on.
	Enabled       *authz.Metadata
	EnabledPPM    uint32
	DenyDisabled  bool
	AllowOnError  bool
	HeaderOnError bool
	StatusOnError int
	Body          *Body
	ClearRoute    bool
	// Allowed and Disallowed choose the request headers to send; nil Allowed
	// means Envoy's default.
	Allowed, Disallowed []matcher.String
}

// Body is with_request_body.
type Body struct {
	Max          int
	AllowPartial bool
}

// HTTPService is an authorization service that speaks HTTP.
type HTTPService struct {
	Cluster, Scheme    string
	PathPrefix, Path   string // Path replaces the request's path if not ""
	Timeout            time.Duration
	Add                [][2]string
	UpstreamHeaders    []matcher.String // of an OK answer, for the request
	UpstreamAppend     []matcher.String
	ClientHeaders      []matcher.String // of a refusal, for the client
	AllClientHeaders   bool
	ClientHeadersOnOK  []matcher.String
	AllowedFromService []matcher.String // deprecated place of Config.Allowed
}

// Override is ExtAuthzPerRoute.
type Override struct {
	Disabled bool
	NoBody   bool
	Body     *Body
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
	}
	if s := int(m.GetStatusOnError().GetCode()); s != 0 {
		if s < 400 {
			return nil, fmt.Errorf("status_on_error.code: %d does not refuse", s)
		}
		c.StatusOnError = s
	}
	if m.GetShadowMode() {
		return nil, errors.New("shadow_mode: not supported")
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
	switch x := m.GetServices().(type) {
	case *ext_authzv3pb.ExtAuthz_HttpService:
		if c.HTTP, err = decodeService(x.HttpService, d); err != nil {
			return nil, fmt.Errorf("http_service.%w", err)
		}
	case *ext_authzv3pb.ExtAuthz_GrpcService:
		d.Ignore("grpc_service", "gRPC authorization services are not called yet: requests that they concern are refused")
	default:
		return nil, errors.New("services: an authorization service is required")
	}
	return c, nil
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
		if x.CheckSettings.GetServiceOverride() != nil {
			return nil, errors.New("check_settings.service_override: not supported")
		}
		if len(x.CheckSettings.GetContextExtensions()) > 0 {
			d.Ignore("check_settings.context_extensions", "HTTP services do not get them, as in Envoy")
		}
		o := &Override{NoBody: x.CheckSettings.GetDisableRequestBodyBuffering()}
		var err error
		if o.Body, err = decodeBody(x.CheckSettings.GetWithRequestBody()); err != nil {
			return nil, fmt.Errorf("check_settings.with_request_body.%w", err)
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
	if s.PathPrefix != "" && !strings.HasPrefix(s.PathPrefix, "/") {
		return nil, errors.New("path_prefix: must begin with a slash")
	}
	if s.Timeout, err = decode.Duration(m.GetServerUri().GetTimeout(), 200*time.Millisecond); err != nil {
		return nil, fmt.Errorf("server_uri.timeout: %w", err)
	}
	if m.GetRetryPolicy() != nil {
		d.Ignore("http_service.retry_policy", "checks are not tried again")
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
	if rs.GetDynamicMetadataFromHeaders() != nil {
		d.Ignore("http_service.authorization_response.dynamic_metadata_from_headers", "headers are not copied to metadata")
	}
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
