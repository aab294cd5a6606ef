package wasm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasmv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	wasmv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
	"github.com/fairlead-mesh/fairlead/filters/internal/proxywasm"
)

const (
	typeURL = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"

	runtimePrefix  = "envoy.wasm.runtime."
	defaultRuntime = runtimePrefix + "v8"

	defaultReload = time.Second
)

// Variables that Istio puts beside a guest's own: they are about how its module
// is pulled, and not for the guest.
const (
	pullSecretVariable      = "ISTIO_META_WASM_IMAGE_PULL_SECRET"
	pullPolicyVariable      = "ISTIO_META_WASM_IMAGE_PULL_POLICY"
	resourceVersionVariable = "ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION"
)

// Config is a validated Wasm message.
type Config struct {
	Plugin proxywasm.Config
	// HostEnv are the names of this process's environment variables that the
	// guest gets, sorted.
	HostEnv []string
	// Where the module is: one of these.
	File, Variable string
	Inline         []byte
	Remote         *filters.ModuleRef
}

// Modules implements filters.ModuleUser.
func (c *Config) Modules() []filters.ModuleRef {
	if c.Remote == nil {
		return nil
	}
	return []filters.ModuleRef{*c.Remote}
}

// Decode implements filters.HTTPFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	var m httpwasmv3pb.Wasm
	if err := decode.Strict(a, &m); err != nil {
		return nil, err
	}
	c := &Config{}
	if err := c.decodePlugin(m.GetConfig(), d); err != nil {
		return nil, fmt.Errorf("config.%w", err)
	}
	return c, nil
}

// DecodeOverride implements filters.HTTPFactory.
func (Factory) DecodeOverride(filters.Any, *filters.Decoding) (filters.Config, error) {
	return nil, errors.New("wasm: there is no per-route configuration")
}

func (c *Config) decodePlugin(m *wasmv3pb.PluginConfig, d *filters.Decoding) error {
	p := &c.Plugin
	p.Name, p.RootID, p.AllowStopIteration = m.GetName(), m.GetRootId(), m.GetAllowOnHeadersStopIteration().GetValue()
	var err error
	if p.PluginConfig, err = text(m.GetConfiguration()); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if err := c.decodePolicy(m, d); err != nil {
		return err
	}
	vm := m.GetVmConfig()
	if vm == nil {
		return errors.New("vm_config: is missing")
	}
	limits := vm.GetCapabilityRestrictionConfig()
	if limits == nil {
		limits = m.GetCapabilityRestrictionConfig()
	}
	if allowed := limits.GetAllowedCapabilities(); len(allowed) > 0 {
		p.Capabilities = slices.Sorted(maps.Keys(allowed))
	}
	if err := c.decodeVM(vm, d); err != nil {
		return fmt.Errorf("vm_config.%w", err)
	}
	return nil
}

func (c *Config) decodePolicy(m *wasmv3pb.PluginConfig, d *filters.Decoding) error {
	p := &c.Plugin
	policy := m.GetFailurePolicy()
	if m.GetFailOpen() && policy != wasmv3pb.FailurePolicy_UNSPECIFIED {
		return errors.New("fail_open: only one of fail_open and failure_policy can be set")
	}
	switch policy {
	case wasmv3pb.FailurePolicy_UNSPECIFIED:
		if m.GetFailOpen() {
			p.Policy = proxywasm.FailOpen
		}
	case wasmv3pb.FailurePolicy_FAIL_CLOSED:
	case wasmv3pb.FailurePolicy_FAIL_OPEN:
		p.Policy = proxywasm.FailOpen
	case wasmv3pb.FailurePolicy_FAIL_RELOAD:
		p.Policy = proxywasm.FailReload
	default:
		return fmt.Errorf("failure_policy: %d is not known", policy)
	}
	b := m.GetReloadConfig().GetBackoff()
	var err error
	if p.ReloadBase, err = decode.Duration(b.GetBaseInterval(), defaultReload); err != nil {
		return fmt.Errorf("reload_config.backoff.base_interval: %w", err)
	}
	if p.ReloadBase < time.Millisecond {
		return errors.New("reload_config.backoff.base_interval: must be at least 1ms")
	}
	most, err := decode.Duration(b.GetMaxInterval(), p.ReloadBase)
	if err != nil {
		return fmt.Errorf("reload_config.backoff.max_interval: %w", err)
	}
	if most < p.ReloadBase {
		return errors.New("reload_config.backoff.max_interval: must not be less than base_interval")
	}
	if b.GetMaxInterval() != nil {
		d.Ignore("config.reload_config.backoff.max_interval", "the pause doesn't grow")
	}
	return nil
}

func (c *Config) decodeVM(m *wasmv3pb.VmConfig, d *filters.Decoding) error {
	p := &c.Plugin
	p.VMID, p.Runtime = m.GetVmId(), m.GetRuntime()
	switch name, known := strings.CutPrefix(p.Runtime, runtimePrefix); {
	case p.Runtime == "":
		p.Runtime = defaultRuntime
	case name == "null":
		return fmt.Errorf("runtime: %s is for code that is part of Envoy", p.Runtime)
	case !known || name != "v8" && name != "wasmtime" && name != "wamr" && name != "wavm":
		d.Ignore("config.vm_config.runtime", fmt.Sprintf("%q is not known; the module runs as all do", p.Runtime))
		p.Runtime = defaultRuntime
	}
	var err error
	if p.VMConfig, err = text(m.GetConfiguration()); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if m.GetAllowPrecompiled() {
		d.Ignore("config.vm_config.allow_precompiled", "machine code in a module is not used; the module is compiled")
	}
	if m.GetNackOnCodeCacheMiss() {
		d.Ignore("config.vm_config.nack_on_code_cache_miss", "a module that is not there yet is awaited")
	}
	pull, err := c.decodeEnvironment(m.GetEnvironmentVariables())
	if err != nil {
		return fmt.Errorf("environment_variables.%w", err)
	}
	if err := c.decodeCode(m.GetCode(), pull, d); err != nil {
		return fmt.Errorf("code.%w", err)
	}
	return nil
}

// decodeEnvironment returns what Istio says about the module.
func (c *Config) decodeEnvironment(m *wasmv3pb.EnvironmentVariables) (pull map[string]string, err error) {
	pull = map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(m.GetKeyValues())) {
		v := m.GetKeyValues()[k]
		switch k {
		case pullSecretVariable, pullPolicyVariable, resourceVersionVariable:
			pull[k] = v
			continue
		}
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00") {
			return nil, fmt.Errorf("key_values[%s]: is no environment variable", k)
		}
		c.Plugin.Env = append(c.Plugin.Env, k+"="+v)
	}
	for _, k := range m.GetHostEnvKeys() {
		if _, twice := m.GetKeyValues()[k]; twice || slices.Contains(c.HostEnv, k) {
			return nil, fmt.Errorf("host_env_keys: %s is there twice", k)
		}
		c.HostEnv = append(c.HostEnv, k)
	}
	slices.Sort(c.HostEnv)
	return pull, nil
}

func (c *Config) decodeCode(m *corev3pb.AsyncDataSource, pull map[string]string, d *filters.Decoding) error {
	switch s := m.GetSpecifier().(type) {
	case *corev3pb.AsyncDataSource_Local:
		return c.decodeLocal(s.Local, d)
	case *corev3pb.AsyncDataSource_Remote:
		r, err := decodeRemote(s.Remote)
		if err != nil {
			return fmt.Errorf("remote.%w", err)
		}
		r.PullSecret, r.PullPolicy, r.ResourceVersion = pull[pullSecretVariable], pull[pullPolicyVariable], pull[resourceVersionVariable]
		c.Remote = r
		return nil
	}
	return errors.New("specifier: is missing")
}

func (c *Config) decodeLocal(m *corev3pb.DataSource, d *filters.Decoding) error {
	if m.GetWatchedDirectory() != nil {
		d.Ignore("config.vm_config.code.local.watched_directory", "a module is read when its configuration arrives")
	}
	switch s := m.GetSpecifier().(type) {
	case *corev3pb.DataSource_Filename:
		c.File = s.Filename
	case *corev3pb.DataSource_InlineBytes:
		c.Inline = s.InlineBytes
	case *corev3pb.DataSource_InlineString:
		c.Inline = []byte(s.InlineString)
	case *corev3pb.DataSource_EnvironmentVariable:
		c.Variable = s.EnvironmentVariable
	}
	if c.File == "" && len(c.Inline) == 0 && c.Variable == "" {
		return errors.New("local: there is no module")
	}
	return nil
}

func decodeRemote(m *corev3pb.RemoteDataSource) (*filters.ModuleRef, error) {
	u := m.GetHttpUri()
	r := &filters.ModuleRef{URL: u.GetUri(), SHA256: strings.ToLower(m.GetSha256()), Cluster: u.GetCluster(), Retries: -1}
	if scheme, _, ok := strings.Cut(r.URL, "://"); !ok || scheme != "http" && scheme != "https" && scheme != "oci" {
		return nil, fmt.Errorf("http_uri.uri: %q is none of http://, https:// and oci://", r.URL)
	}
	if r.SHA256 == "nil" { // Istio's word for none
		r.SHA256 = ""
	}
	if r.SHA256 != "" && (len(r.SHA256) != 64 || strings.Trim(r.SHA256, "0123456789abcdef") != "") {
		return nil, fmt.Errorf("sha256: %q is not the hex form of a SHA-256 digest", r.SHA256)
	}
	var err error
	if r.Timeout, err = decode.Duration(u.GetTimeout(), 0); err != nil {
		return nil, fmt.Errorf("http_uri.timeout: %w", err)
	}
	if p := m.GetRetryPolicy(); p != nil {
		r.Retries = 1
		if n := p.GetNumRetries(); n != nil {
			r.Retries = int(min(n.GetValue(), 64))
		}
		if r.Base, err = decode.Duration(p.GetRetryBackOff().GetBaseInterval(), 0); err != nil {
			return nil, fmt.Errorf("retry_policy.retry_back_off.base_interval: %w", err)
		}
		if r.Max, err = decode.Duration(p.GetRetryBackOff().GetMaxInterval(), 0); err != nil {
			return nil, fmt.Errorf("retry_policy.retry_back_off.max_interval: %w", err)
		}
	}
	return r, nil
}

// text is a configuration as the guest reads it: the value of a string or of
// bytes, a Struct as JSON, other messages in their wire form.
func text(a *anypb.Any) (string, error) {
	var m proto.Message
	switch a.MessageName() {
	case "google.protobuf.StringValue":
		m = &wrapperspb.StringValue{}
	case "google.protobuf.BytesValue":
		m = &wrapperspb.BytesValue{}
	case "google.protobuf.Struct":
		m = &structpb.Struct{}
	default:
		return string(a.GetValue()), nil
	}
	if err := proto.Unmarshal(a.GetValue(), m); err != nil {
		return "", err
	}
	switch m := m.(type) {
	case *wrapperspb.StringValue:
		return m.GetValue(), nil
	case *wrapperspb.BytesValue:
		return string(m.GetValue()), nil
	case *structpb.Struct:
		j, err := m.MarshalJSON()
		if err != nil {
			return "", err
		}
		var b bytes.Buffer
		if err := json.Compact(&b, j); err != nil { // its spaces are random
			return "", err
		}
		return b.String(), nil
	}
	return "", nil
}
