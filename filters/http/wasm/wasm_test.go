package wasm

import (
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/filters/internal/proxywasm"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/fairlead-mesh/fairlead/internal/timer.(*wheel).run"))
}

const (
	header = "../../internal/proxywasm/testdata/header.wasm"
	probe  = "../../internal/proxywasm/testdata/probe.wasm"
)

func jsonAny(s string) filters.Any {
	return filters.Any{TypeURL: typeURL, Value: []byte(s), JSON: true}
}

func decodeOne(t *testing.T, s string) *Config {
	t.Helper()
	c, err := Factory{}.Decode(jsonAny(s), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*Config) //nolint:forcetypeassert // of a Factory
}

// local is a configuration with a module of a file and more fields.
func local(file, plugin, vm string) string {
	return `{"config":{` + plugin + `"vmConfig":{` + vm + `"code":{"local":{"filename":"` + file + `"}}}}}`
}

func TestConfigurations(t *testing.T) {
	c := decodeOne(t, `{"config":{"name":"n","rootId":"r","failurePolicy":"FAIL_RELOAD","reloadConfig":{"backoff":{"baseInterval":"2s","maxInterval":"5s"}},
"configuration":{"@type":"type.googleapis.com/google.protobuf.StringValue","value":"{\"a\":1}"},"allowOnHeadersStopIteration":true,
"vmConfig":{"vmId":"v","runtime":"envoy.wasm.runtime.wasmtime","configuration":{"@type":"type.googleapis.com/google.protobuf.Struct","value":{"b":[1,"x"],"a":null}},
"environmentVariables":{"hostEnvKeys":["HOME"],"keyValues":{"B":"2","A":"1","ISTIO_META_WASM_IMAGE_PULL_SECRET":"secret","ISTIO_META_WASM_IMAGE_PULL_POLICY":"Always","ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION":"7"}},
"capabilityRestrictionConfig":{"allowedCapabilities":{"proxy_log":{},"fd_write":{}}},
"code":{"remote":{"httpUri":{"uri":"oci://r.example/f:v1","cluster":"_","timeout":"30s"},"sha256":"`+strings.Repeat("AB", 32)+`"}}}}}`)
	p := c.Plugin
	if p.Name != "n" || p.RootID != "r" || p.Policy != proxywasm.FailReload || p.ReloadBase != 2*time.Second || p.PluginConfig != `{"a":1}` ||
		!p.AllowStopIteration || p.VMID != "v" || p.Runtime != "envoy.wasm.runtime.wasmtime" || p.VMConfig != `{"a":null,"b":[1,"x"]}` ||
		strings.Join(p.Env, " ") != "A=1 B=2" || strings.Join(p.Capabilities, " ") != "fd_write proxy_log" || c.HostEnv[0] != "HOME" {
		t.Errorf("%+v", c)
	}
	want := filters.ModuleRef{
		URL: "oci://r.example/f:v1", SHA256: strings.Repeat("ab", 32), Cluster: "_", PullSecret: "secret", PullPolicy: "Always", ResourceVersion: "7",
		Timeout: 30 * time.Second, Retries: -1,
	}
	if refs := c.Modules(); len(refs) != 1 || refs[0] != want {
		t.Errorf("%+v", refs)
	}
	for _, tc := range []struct{ config, want string }{
		{`{}`, "config.vm_config: is missing"},
		{`{"config":{"vmConfig":{}}}`, "config.vm_config.code.specifier: is missing"},
		{`{"config":{"vmConfig":{"code":{"local":{}}}}}`, "code.local: there is no module"},
		{local("x", `"failOpen":true,"failurePolicy":"FAIL_OPEN",`, ""), "fail_open: only one of"},
		{local("x", `"failurePolicy":9,`, ""), "failure_policy: 9 is not known"},
		{local("x", `"reloadConfig":{"backoff":{"baseInterval":"0s"}},`, ""), "base_interval: must be at least 1ms"},
		{local("x", `"reloadConfig":{"backoff":{"baseInterval":"2s","maxInterval":"1s"}},`, ""), "max_interval: must not be less"},
		{local("x", "", `"runtime":"envoy.wasm.runtime.null",`), "runtime: envoy.wasm.runtime.null is for code that is part of Envoy"},
		{local("x", "", `"environmentVariables":{"hostEnvKeys":["A"],"keyValues":{"A":"b"}},`), "host_env_keys: A is there twice"},
		{local("x", "", `"environmentVariables":{"keyValues":{"A=B":"b"}},`), "key_values[A=B]: is no environment variable"},
		{`{"config":{"vmConfig":{"code":{"remote":{"httpUri":{"uri":"ftp://x"}}}}}}`, `http_uri.uri: "ftp://x" is none of`},
		{`{"config":{"vmConfig":{"code":{"remote":{"httpUri":{"uri":"http://x/y"},"sha256":"xyz"}}}}}`, `sha256: "xyz" is not the hex form`},
	} {
		if _, err := (Factory{}).Decode(jsonAny(tc.config), nil); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.config, err)
		}
	}
	if _, err := (Factory{}).DecodeOverride(jsonAny(`{}`), nil); err == nil {
		t.Error("there is no per-route configuration")
	}
	var d filters.Decoding
	if _, err := (Factory{}).Decode(jsonAny(local("x", "", `"runtime":"acme","allowPrecompiled":true,"nackOnCodeCacheMiss":true,`)), &d); err != nil || len(d.Ignored()) != 3 {
		t.Error(d.Ignored(), err)
	}
}

func ask(f filters.HTTPFilter) string {
	s := &filters.Stream{}
	s.Reset()
	s.Request.Add(message.Method, "GET")
	s.Request.Add(message.Path, "/p")
	s.SetChain([]filters.HTTPFilter{f, answers{}})
	r, err := filters.Start(s)
	if err != nil {
		return err.Error()
	}
	if e, ok := f.(filters.StreamEnder); ok {
		e.OnStreamEnd(s, r)
	}
	return r.Header.Get(message.Status) + " " + s.Request.Get("x-path") + s.Info.Details
}

type answers struct{}

func (answers) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	r := s.NewResponse()
	r.Header.Add(message.Status, "200")
	return r, nil
}

func TestModulesFromFilesVariablesAndTheConfiguration(t *testing.T) {
	code, err := os.ReadFile(header)
	if err != nil {
		t.Fatal(err)
	}
	inline := `{"config":{"vmConfig":{"code":{"local":{"inlineBytes":"` + base64.StdEncoding.EncodeToString(code) + `"}}}}}`
	for _, config := range []string{local(header, "", ""), inline} {
		f, err := Factory{}.Compile(&filters.Env{}, decodeOne(t, config), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := ask(f); got != "200 /p" {
			t.Error(got)
		}
		if err := f.(*filter).Close(); err != nil { //nolint:forcetypeassert // its type
			t.Error(err)
		}
	}
	t.Setenv("EMPTY_MODULE", "")
	for config, want := range map[string]string{
		local("/nowhere.wasm", `"name":"p",`, ""): `wasm: plugin "p": open /nowhere.wasm: no such file`,
		local(probe, `"configuration":{"@type":"type.googleapis.com/google.protobuf.StringValue","value":"refuse"},`, ""): "proxy_on_configure returned false",
		`{"config":{"vmConfig":{"code":{"local":{"environmentVariable":"NO_SUCH_MODULE"}}}}}`:                             "NO_SUCH_MODULE is not set",
		`{"config":{"vmConfig":{"code":{"local":{"environmentVariable":"EMPTY_MODULE"}}}}}`:                               "not a well-formed WebAssembly module",
		`{"config":{"vmConfig":{"code":{"local":{"inlineString":"text"}}}}}`:                                              "not a well-formed WebAssembly module",
		`{"config":{"vmConfig":{"code":{"remote":{"httpUri":{"uri":"http://x/y","cluster":"c"}}}}}}`:                      "nothing here fetches modules: http://x/y",
	} {
		if _, err := (Factory{}).Compile(&filters.Env{}, decodeOne(t, config), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", config, err)
		}
	}
	big := filepath.Join(t.TempDir(), "big.wasm")
	if err := os.Truncate(big, 0); err == nil {
		t.Fatal("it exists")
	}
	file, err := os.Create(big)
	if err != nil {
		t.Fatal(err)
	}
	_ = file.Truncate(proxywasm.MaxModule + 1)
	_ = file.Close()
	if _, err := (Factory{}).Compile(&filters.Env{}, decodeOne(t, local(big, "", "")), nil); err == nil || !strings.Contains(err.Error(), "has more than") {
		t.Error(err)
	}
}

// fetched is filters.Modules with a module that is not there at first.
type fetched struct {
	code []byte
	err  error
}

func (m *fetched) Module(filters.ModuleRef) ([]byte, error) { return m.code, m.err }

const remote = `"vmConfig":{"code":{"remote":{"httpUri":{"uri":"http://x/y","cluster":"c"}}}}}}`

func TestWhatIsPreparedIsCompiledAtOnce(t *testing.T) {
	code, err := os.ReadFile(header)
	if err != nil {
		t.Fatal(err)
	}
	m := &fetched{err: filters.ErrModulePending}
	env := &filters.Env{Modules: m, Shared: &filters.Shared{}}
	c := decodeOne(t, `{"config":{`+remote)
	if _, err := (Factory{}).Prepare(t.Context(), env, c); !errors.Is(err, filters.ErrModulePending) {
		t.Error(err)
	}
	m.code, m.err = code, nil
	p, err := Factory{}.Prepare(t.Context(), env, c)
	if err != nil {
		t.Fatal(err)
	}
	m.code, m.err = nil, errors.New("it is not needed any more")
	env.Prepared = p
	var fs []filters.HTTPFilter
	for range 2 {
		f, err := Factory{}.Compile(env, c, nil)
		if err != nil {
			t.Fatal(err)
		}
		fs = append(fs, f)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	for _, f := range fs {
		if got := ask(f); got != "200 /p" {
			t.Error(got)
		}
		if x := f.(*filter).Explain(nil); x.Verdict != filters.VerdictUnknown { //nolint:forcetypeassert // its type
			t.Errorf("%+v", x)
		}
		_ = f.(*filter).Close() //nolint:forcetypeassert // its type
	}
	if _, err := (Factory{}).Compile(env, c, nil); err == nil {
		t.Error("what is closed is compiled")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m.code, m.err = code, nil
	if _, err := (Factory{}).Prepare(ctx, env, c); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody wants it: %v", err)
	}
}

func TestWithoutItsModuleThePolicyDecides(t *testing.T) {
	env := &filters.Env{Modules: &fetched{err: errors.New("404")}}
	for policy, want := range map[string]string{"FAIL_CLOSED": "503 wasm_fail_stream", "FAIL_OPEN": "", "FAIL_RELOAD": "503 wasm_fail_stream"} {
		c := decodeOne(t, `{"config":{"failurePolicy":"`+policy+`",`+remote)
		if _, err := (Factory{}).Compile(env, c, nil); err == nil {
			t.Error("a module that can't be fetched is an error")
		}
		for why, reason := range map[error]string{filters.ErrModulePending: "module_pending", errors.New("it trapped"): "vm_failed"} {
			f := Factory{}.StandIn(env, c, why)
			if want == "" {
				if f != nil {
					t.Errorf("%s: %+v", policy, f)
				}
				continue
			}
			s, _ := f.(standIn)
			if got := ask(f); got != want || s.d.Reason != reason {
				t.Errorf("%s: %s, %+v", policy, got, s.d)
			}
			if x := s.Explain(nil); x.Verdict != filters.VerdictDeny || !strings.Contains(x.Text[0], why.Error()) {
				t.Errorf("%+v", x)
			}
		}
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and a guest is not told how its module is pulled.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(local("x", `"name":"n","failOpen":true,`, `"vmId":"v",`)))
	f.Add([]byte(`{"config":{"vmConfig":{"environmentVariables":{"keyValues":{"ISTIO_META_WASM_IMAGE_PULL_SECRET":"s","A":"b"}},"code":{"remote":{"httpUri":{"uri":"oci://x/y"},"sha256":"nil"}}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodetest.Forms(t, jsonAny(string(b)), Factory{}.Decode)
		if err != nil {
			return
		}
		for _, e := range c.(*Config).Plugin.Env { //nolint:forcetypeassert // of a Factory
			if strings.HasPrefix(e, "ISTIO_META_WASM_") && (strings.HasPrefix(e, pullSecretVariable) || strings.HasPrefix(e, pullPolicyVariable+"=")) {
				t.Fatal(e)
			}
		}
	})
}
