package rego

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/http/rego/regopb"
)

// The type URLs of the filter's configuration and of its per-route form.
const (
	TypeURL         = "type.googleapis.com/fairlead.rego.v1.Config"
	PerRouteTypeURL = "type.googleapis.com/fairlead.rego.v1.PerRoute"
)

const (
	defaultQuery             = "data.envoy.authz.allow"
	defaultTimeout           = 100 * time.Millisecond
	maxTimeout               = 10 * time.Second
	defaultMaxBody           = 64 << 10
	maxMaxBody               = 16 << 20
	defaultPoll              = 5 * time.Second
	minPoll                  = 100 * time.Millisecond
	defaultMetadataNamespace = "envoy.filters.http.ext_authz"
)

// config is a validated Config.
type config struct {
	policy             policyConfig
	query              string
	timeout            time.Duration
	maxBody            int
	truncate           bool
	failOpen, dryRun   bool
	allowBuiltins      []string
	extensions         map[string]string
	metadataNamespaces []string
	log                *logConfig
	name               string
	metadataNamespace  string
	denyStatus         int
	clearRouteCache    bool
	peerCertificate    bool
	descriptors        []byte // a FileDescriptorSet, or
	descriptorFile     string
}

// policyConfig is a validated Policy.
type policyConfig struct {
	sources []sourceConfig
	data    json.RawMessage // "" or an object
	version regopb.Policy_RegoVersion
	poll    time.Duration
	bundles []*bundleConfig
}

type sourceConfig struct{ inline, filename string }

func (p *policyConfig) hasFiles() bool {
	return slices.ContainsFunc(p.sources, func(s sourceConfig) bool { return s.filename != "" }) ||
		slices.ContainsFunc(p.bundles, func(b *bundleConfig) bool { return b.HTTP == nil })
}

// queries are the rules that c asks for.
func (c *config) queries() queries {
	q := queries{decision: c.query}
	if l := c.log; l != nil {
		q.mask, q.maskRequired, q.drop, q.dropRequired = l.maskQuery, l.maskRequired, l.dropQuery, l.dropRequired
	}
	return q
}

// override is a validated PerRoute.
type override struct {
	disabled   bool
	policy     *policyConfig
	query      string
	extensions map[string]string
}

func unmarshal(a filters.Any, m proto.Message) error {
	if a.JSON {
		if err := protojson.Unmarshal(a.Value, m); err != nil {
			return fmt.Errorf("%s as JSON: %w", m.ProtoReflect().Descriptor().FullName(), err)
		}
		return nil
	}
	if err := proto.Unmarshal(a.Value, m); err != nil {
		return fmt.Errorf("%s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	if len(m.ProtoReflect().GetUnknown()) > 0 {
		// A field of a newer version may be a restriction.
		return fmt.Errorf("%s: unknown fields: written for a newer version?", m.ProtoReflect().Descriptor().FullName())
	}
	return nil
}

// Decode validates a Config. Inline policies are compiled to find errors here.
func (Factory) Decode(a filters.Any, _ *filters.Decoding) (filters.Config, error) {
	if a.TypeURL != TypeURL {
		return nil, fmt.Errorf("rego: type %q: want %q", a.TypeURL, TypeURL)
	}
	var m regopb.Config
	if err := unmarshal(a, &m); err != nil {
		return nil, err
	}
	c, err := decodeConfig(&m)
	if err != nil {
		return nil, err
	}
	switch {
	case len(c.policy.bundles) > 0:
		err = parseInline(&c.policy)
	case !c.policy.hasFiles():
		_, err = compileInline(&c.policy, c.queries(), c.allowBuiltins)
	}
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return c, nil
}

// DecodeOverride validates a PerRoute.
func (Factory) DecodeOverride(a filters.Any, _ *filters.Decoding) (filters.Config, error) {
	if a.TypeURL != PerRouteTypeURL {
		return nil, fmt.Errorf("rego: per-route type %q: want %q", a.TypeURL, PerRouteTypeURL)
	}
	var m regopb.PerRoute
	if err := unmarshal(a, &m); err != nil {
		return nil, err
	}
	o := &override{disabled: m.GetDisabled(), extensions: m.GetContextExtensions()}
	var err error
	if m.GetQuery() != "" {
		if o.query, err = decodeQuery(m.GetQuery()); err != nil {
			return nil, err
		}
	}
	if m.GetPolicy() != nil {
		if o.policy, err = decodePolicy(m.GetPolicy()); err != nil {
			return nil, fmt.Errorf("policy.%w", err)
		}
	}
	return o, nil
}

func decodeConfig(m *regopb.Config) (*config, error) {
	c := &config{
		timeout: defaultTimeout, maxBody: defaultMaxBody, denyStatus: 403,
		truncate: m.GetBodyOverflow() == regopb.Config_TRUNCATE,
		failOpen: m.GetFailureModeAllow(), dryRun: m.GetDryRun(),
		extensions: m.GetContextExtensions(), metadataNamespaces: m.GetMetadataContextNamespaces(),
		name: m.GetName(), metadataNamespace: m.GetMetadataNamespace(),
		clearRouteCache: m.GetClearRouteCache(), peerCertificate: m.GetIncludePeerCertificate(),
		descriptors: m.GetProtoDescriptorInline(), descriptorFile: m.GetProtoDescriptorFile(),
	}
	if m.GetPolicy() == nil {
		return nil, errors.New("policy: required")
	}
	p, err := decodePolicy(m.GetPolicy())
	if err != nil {
		return nil, fmt.Errorf("policy.%w", err)
	}
	c.policy = *p
	if c.query, err = decodeQuery(m.GetQuery()); err != nil {
		return nil, err
	}
	if c.timeout, err = duration("timeout", m.GetTimeout(), defaultTimeout, time.Millisecond, maxTimeout); err != nil {
		return nil, err
	}
	if n := m.GetMaxRequestBytes(); n > maxMaxBody {
		return nil, fmt.Errorf("max_request_bytes: %d exceeds %d", n, maxMaxBody)
	} else if n > 0 {
		c.maxBody = int(n)
	}
	if _, ok := regopb.Config_BodyOverflow_name[int32(m.GetBodyOverflow())]; !ok {
		return nil, fmt.Errorf("body_overflow: unknown value %d", m.GetBodyOverflow())
	}
	for i, b := range m.GetAllowBuiltins() {
		if !slices.Contains(restrictedBuiltins, b) {
			return nil, fmt.Errorf("allow_builtins[%d]: %q is not one of %q", i, b, restrictedBuiltins)
		}
	}
	c.allowBuiltins = slices.Clone(m.GetAllowBuiltins())
	slices.Sort(c.allowBuiltins)
	if s := m.GetDenyStatus(); s != 0 {
		if s < 400 || s > 599 {
			return nil, fmt.Errorf("deny_status: %d is not an error status (400 to 599)", s)
		}
		c.denyStatus = int(s)
	}
	if c.metadataNamespace == "" {
		c.metadataNamespace = defaultMetadataNamespace
	}
	if len(c.descriptors) > 0 {
		if _, err := readMethods(c.descriptors); err != nil {
			return nil, fmt.Errorf("proto_descriptor_inline: %w", err)
		}
	}
	if m.GetDecisionLog() != nil {
		if c.log, err = decodeLog(m.GetDecisionLog()); err != nil {
			return nil, fmt.Errorf("decision_log.%w", err)
		}
	}
	return c, nil
}

func decodeQuery(q string) (string, error) { return decodePath("query", q, defaultQuery) }

// decodePath reads the path of a rule.
func decodePath(field, q, def string) (string, error) {
	switch {
	case q == "":
		return def, nil
	case !strings.HasPrefix(q, "data.") && !strings.ContainsAny(q, ". \t\n;:=[]{}()"):
		// The plugin's path form, envoy/authz/allow.
		q = "data." + strings.ReplaceAll(strings.Trim(q, "/"), "/", ".")
	}
	if err := checkQuery(q); err != nil {
		return "", fmt.Errorf("%s: %w", field, err)
	}
	return q, nil
}

func decodePolicy(m *regopb.Policy) (*policyConfig, error) {
	p := &policyConfig{version: m.GetRegoVersion()}
	if _, ok := regopb.Policy_RegoVersion_name[int32(p.version)]; !ok {
		return nil, fmt.Errorf("rego_version: unknown value %d", p.version)
	}
	modules := 0
	for i, s := range m.GetSources() {
		switch {
		case s.GetInlineString() != "":
			p.sources = append(p.sources, sourceConfig{inline: s.GetInlineString()})
			modules++
		case s.GetFilename() != "":
			if !isData(s.GetFilename()) {
				modules++
			}
			p.sources = append(p.sources, sourceConfig{filename: s.GetFilename()})
		default:
			return nil, fmt.Errorf("sources[%d]: inline_string or filename required", i)
		}
	}
	for i, b := range m.GetBundles() {
		c, err := decodeBundle(b, p.version)
		if err != nil {
			return nil, fmt.Errorf("bundles[%d].%w", i, err)
		}
		if slices.ContainsFunc(p.bundles, func(o *bundleConfig) bool { return o.Name == c.Name }) {
			return nil, fmt.Errorf("bundles[%d].name: %q is there twice", i, c.Name)
		}
		p.bundles = append(p.bundles, c)
	}
	if modules == 0 && len(p.bundles) == 0 {
		return nil, errors.New("sources: at least one Rego module or a bundle required")
	}
	if m.GetData() != nil {
		b, err := protojson.Marshal(m.GetData())
		if err != nil {
			return nil, fmt.Errorf("data: %w", err)
		}
		p.data = b
	}
	var err error
	p.poll, err = duration("poll_interval", m.GetPollInterval(), defaultPoll, minPoll, time.Hour)
	return p, err
}

// duration returns d, or def if it is unset or zero.
func duration(field string, d *durationpb.Duration, def, low, high time.Duration) (time.Duration, error) {
	if d == nil {
		return def, nil
	}
	if err := d.CheckValid(); err != nil {
		return 0, fmt.Errorf("%s: %w", field, err)
	}
	v := d.AsDuration()
	switch {
	case v == 0:
		return def, nil
	case v < low || v > high:
		return 0, fmt.Errorf("%s: %v is outside %v to %v", field, v, low, high)
	}
	return v, nil
}
