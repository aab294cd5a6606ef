package rbac

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func jsonAny(s string) filters.Any {
	return filters.Any{TypeURL: typeURL, Value: []byte(s), JSON: true}
}

func compile(t *testing.T, config string) filters.NetworkFilter {
	t.Helper()
	c, err := Factory{}.Decode(jsonAny(config), nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Factory{}.Compile(nil, c)
	if err != nil {
		t.Fatal(err)
	}
	return f.(filters.NetworkFilter)
}

func connection() *filters.Connection {
	ci := &streaminfo.Conn{Local: netip.MustParseAddrPort("10.96.1.1:9000"), Remote: netip.MustParseAddrPort("10.0.0.7:1"), DirectRemote: netip.MustParseAddrPort("10.0.0.7:1"), RequestedServerName: "a.b"}
	c := &filters.Connection{Info: &streaminfo.Info{Conn: ci}}
	ci.FilterState.Set("io.istio.peer_principal", streaminfo.String("spiffe://cluster.local/ns/app/sa/client"), streaminfo.SharingNone)
	c.Info.FilterState.Reset(&ci.FilterState)
	return c
}

const denyPort = `{"statPrefix":"tcp.","rules":{"action":"DENY","policies":{"ns[a]-policy[b]-rule[0]":{"permissions":[{"destinationPort":9000}],"principals":[{"any":true}]}}}}`

func TestRefusalCarriesTheDetails(t *testing.T) {
	err := compile(t, denyPort).OnNewConnection(connection())
	var d *filters.Denied
	if !errors.As(err, &d) || d.Details != "rbac_access_denied_matched_policy[ns[a]-policy[b]-rule[0]]" || d.Flag != 0 {
		t.Fatalf("%#v", err)
	}
	c := connection()
	c.Info.Conn.Local = netip.MustParseAddrPort("10.96.1.1:9001")
	if err := compile(t, denyPort).OnNewConnection(c); err != nil {
		t.Fatal(err)
	}
}

func TestHTTPAttributesDoNotMatchOnTCP(t *testing.T) {
	const rule = `{"rules":{"action":"%","policies":{"p":{"permissions":[{"header":{"name":":method","stringMatch":{"exact":"GET"}}},{"urlPath":{"path":{"prefix":"/"}}}],"principals":[{"any":true}]}}}}`
	for action, refused := range map[string]bool{"ALLOW": true, "DENY": false} {
		f := compile(t, rule[:len(`{"rules":{"action":"`)]+action+rule[len(`{"rules":{"action":"%`):])
		if err := f.OnNewConnection(connection()); (err != nil) != refused {
			t.Errorf("%s: %v", action, err)
		}
	}
}

func TestShadowResultsReachTheNextFilter(t *testing.T) {
	c := connection()
	f := compile(t, `{"shadowRulesStatPrefix":"istio_ext_authz_","shadowRules":{"action":"DENY","policies":{"istio-ext-authz-x":{"permissions":[{"any":true}],"principals":[{"any":true}]}}}}`)
	if err := f.OnNewConnection(c); err != nil {
		t.Fatal(err)
	}
	if v, _ := c.Info.Metadata.Lookup(Namespace, "istio_ext_authz_shadow_effective_policy_id"); v != "istio-ext-authz-x" {
		t.Errorf("%v", c.Info.Metadata.Namespaces())
	}
}

func TestDelayDenyHoldsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		if compile(t, `{"rules":{},"delayDeny":"3s"}`).OnNewConnection(connection()) == nil {
			t.Error("admitted")
		}
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("closed after %v", d)
		}
	})
}

func TestRefusesWhatItCannotExecute(t *testing.T) {
	for _, c := range []string{`{"enforcementType":"CONTINUOUS"}`, `{"matcher":{}}`, `{"rules":{"policies":{"p":{}}}}`, `{"delayDeny":"-1s"}`} {
		if _, err := (Factory{}).Decode(jsonAny(c), nil); err == nil {
			t.Errorf("%s was accepted", c)
		}
	}
}

func TestExecutesWhatIstiodSends(t *testing.T) {
	b, err := os.ReadFile("testdata/istiod.json")
	if err != nil {
		t.Fatal(err)
	}
	var configs []json.RawMessage
	if err := json.Unmarshal(b, &configs); err != nil {
		t.Fatal(err)
	}
	if len(configs) != 7 {
		t.Fatalf("%d configurations, want 7", len(configs))
	}
	allowed := 0
	for i, raw := range configs {
		d := &filters.Decoding{}
		cfg, err := Factory{}.Decode(jsonAny(string(raw)), d)
		if err != nil || len(d.Ignored()) > 0 {
			t.Fatalf("%d: %v, ignored %v", i, err, d.Ignored())
		}
		f, err := Factory{}.Compile(nil, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if f.(filters.NetworkFilter).OnNewConnection(connection()) == nil {
			allowed++
		}
	}
	if allowed != 3 {
		t.Errorf("%d configurations admit the probe, want 3", allowed)
	}
}

func TestDecidingDoesNotAllocate(t *testing.T) {
	f, c := compile(t, `{"rules":{"policies":{"p":{"permissions":[{"any":true}],"principals":[{"any":true}]}}}}`), connection()
	if a := testing.AllocsPerRun(100, func() { _ = f.OnNewConnection(c) }); a != 0 {
		t.Errorf("%v allocations", a)
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and what is accepted compiles and decides.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(denyPort), true)
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool) {
		c, err := decodetest.Forms(t, filters.Any{TypeURL: typeURL, JSON: isJSON, Value: b}, Factory{}.Decode)
		if err != nil {
			return
		}
		c.(*Config).DelayDeny = 0
		fl, err := Factory{}.Compile(nil, c)
		if err != nil {
			t.Fatalf("decoded configuration does not compile: %v", err)
		}
		_ = fl.(filters.NetworkFilter).OnNewConnection(connection())
	})
}
