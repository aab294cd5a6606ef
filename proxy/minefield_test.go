package proxy_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// records are the lines that a proxy logs.
type records struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

// about counts the lines that contain text.
func (r *records) about(text string) (n int, all string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for line := range strings.Lines(r.b.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n, r.b.String()
}

// minefield is a proxy with a trap in it.
type minefield struct {
	*proxy.Server
	t    *testing.T
	f    *traps
	dec  *xdsresource.Decoder
	reg  *stats.Registry
	logs *records
	res  *proxy.Resources
	port int
}

func newMinefield(t *testing.T) *minefield {
	t.Helper()
	m := &minefield{t: t, f: &traps{}, reg: &stats.Registry{}, logs: &records{}}
	reg := builtin.Registry()
	reg.RegisterHTTP(httpTraps{m.f})
	reg.RegisterNetwork(networkTraps{m.f})
	reg.RegisterListener(listenerTraps{m.f})
	m.dec = xdsresource.NewDecoder(reg, xdsresource.Options{})
	var err error
	if m.Server, err = proxy.New(proxy.Options{Registry: reg, DrainTime: time.Millisecond, Stats: m.reg, Logger: slog.New(slog.NewJSONHandler(m.logs, nil))}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	m.res = &proxy.Resources{Listeners: map[string]*xdsresource.Listener{}, Clusters: map[string]*xdsresource.Cluster{}}
	return m
}

// cluster is one with an origin that speaks HTTP/2 or nothing but TCP.
func (m *minefield) cluster(name string, port int, http2 bool) {
	m.t.Helper()
	opts := ""
	if http2 {
		opts = `typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}},`
	}
	v, err := m.dec.FromYAML(xdsresource.ClusterType, fmt.Appendf(nil, `{name: %[1]s, type: STATIC, connect_timeout: 1s, %[3]s load_assignment: {cluster_name: %[1]s,
endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}}}]}]}}`, name, port, opts))
	if err != nil {
		m.t.Fatal(err)
	}
	m.res.Clusters[name], _ = v.(*xdsresource.Cluster)
}

func (m *minefield) listener(doc string) {
	m.t.Helper()
	v, err := m.dec.FromYAML(xdsresource.ListenerType, []byte(doc))
	if err != nil {
		m.t.Fatal(err)
	}
	l, _ := v.(*xdsresource.Listener)
	m.res.Listeners[l.Name] = l
}

func (m *minefield) apply() {
	m.t.Helper()
	if err := m.Apply(&proxy.Resources{Listeners: maps.Clone(m.res.Listeners), Clusters: maps.Clone(m.res.Clusters)}); err != nil {
		m.t.Fatal(err)
	}
	m.port = m.portOf("l")
}

func (m *minefield) portOf(listener string) int {
	m.t.Helper()
	return int(m.Listener(listener).Addresses()[0].Port())
}

// sum adds up the series that match.
func (m *minefield) sum(match func(name string) bool) (total float64, names string) {
	for s := range m.reg.Each {
		if match(s.Name) && s.Value != 0 {
			total += s.Value
			names += fmt.Sprintf(" %s{%s}=%v", s.Name, s.LabelText, s.Value)
		}
	}
	return total, names
}

// settled waits until nothing counts as active any more, and asserts that the
// panic was told once, with its place.
func (m *minefield) settled(where string, lines int) {
	m.t.Helper()
	active := func(name string) bool {
		return strings.HasSuffix(name, "_active") && !strings.HasSuffix(name, "upstream_cx_active") && !strings.HasPrefix(name, "envoy_listener_manager_")
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		n, names := m.sum(active)
		if n == 0 && m.Active() == 0 {
			break
		}
		if time.Now().After(deadline) {
			m.t.Errorf("still active: %d connections,%s", m.Active(), names)
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	n, all := m.logs.about("trap: " + where)
	if n != lines {
		m.t.Errorf("%d lines tell of the panic, want %d: %s", n, lines, all)
	}
	if k, _ := m.logs.about("proxy/panic"); lines > 0 && k == 0 {
		m.t.Errorf("no line says where: %s", all)
	}
}
