package proxy_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// trapConn is a connection with a bug.
type trapConn struct {
	netio.Conn
	tr *trap
	of string

	closed atomic.Bool
}

func (c *trapConn) Read(p []byte) (int, error) {
	c.tr.at(c.of + " read")
	return c.Conn.Read(p)
}

func (c *trapConn) TryRead(p []byte) (int, error) {
	c.tr.at(c.of + " read")
	return c.Conn.TryRead(p)
}

func (c *trapConn) Write(p []byte) (int, error) {
	c.tr.at(c.of + " write")
	return c.Conn.Write(p)
}

func (c *trapConn) Close() error {
	err := c.Conn.Close()
	if !c.closed.Swap(true) {
		c.tr.at(c.of + " close")
	}
	return err
}

// OnAccept implements filters.ListenerFilter.
func (tr *trap) OnAccept(*filters.Connection) error {
	if tr.armed.Load() {
		tr.at("listener filter")
	}
	return nil
}

// OnNewConnection implements filters.NetworkFilter.
func (tr *trap) OnNewConnection(c *filters.Connection) error {
	if !tr.armed.Load() {
		return nil
	}
	tr.at("network filter")
	if strings.HasPrefix(tr.Where, "state") {
		c.Info.FilterState.Set("trap", tr, 0)
		c.Info.Conn.FilterState.Set("trap", tr, 0)
	}
	if strings.HasPrefix(tr.Where, "connection") {
		c.Conn = &trapConn{Conn: c.Conn, tr: tr, of: "connection"}
	}
	c.Observe(func(*filters.Connection) { tr.at("progress of a connection") })
	if tr.Where == "state of a refused connection" {
		return errors.New("refused")
	}
	return nil
}

// OnConnectionEnd implements filters.ConnectionEnder.
func (tr *trap) OnConnectionEnd(*filters.Connection) {
	if tr.armed.Load() {
		tr.at("end of a connection")
	}
}

// trapTerminal is a terminal filter.
type trapTerminal struct{ tr *trap }

func (f trapTerminal) Serve(c *filters.Connection, done func()) {
	if f.tr.armed.Load() {
		f.tr.at("serve")
	}
	netio.JoinAsync(c.Conn, loop(), netio.JoinOptions{}, func(uint64, uint64, error) { done() })
}

// loop is a stream that answers what it is told.
func loop() netio.Conn {
	a, b := netio.Pipe(zeroAddr, zeroAddr)
	go func() {
		defer b.Close()
		buf := make([]byte, 256)
		for {
			n, err := b.Read(buf)
			if err != nil {
				return
			}
			_, _ = b.Write(buf[:n])
		}
	}()
	return a
}

var zeroAddr netip.AddrPort

func tcpPort(l net.Listener) int {
	a, _ := l.Addr().(*net.TCPAddr)
	return a.Port
}

// mineConn are places on the way of a connection.
var mineConn = []struct {
	where, terminal string // tcp_proxy if empty
	tcp             string // fields of tcp_proxy
	listener        string // fields of the listener
	survives        bool   // the connection works all the same
}{
	{where: "listener filter"},
	{where: "network filter"},
	{where: "serve", terminal: "-"},
	{where: "end of a connection", survives: true},
	{where: "connection read"},
	{where: "connection write"},
	{where: "connection close", survives: true},
	{where: "progress of a connection", survives: true},
	{where: "state in a TCP access log", tcp: accessLogs("access_log"), survives: true},
	{where: "state in a listener's access log", listener: accessLogs("access_log"), survives: true},
	{where: "state in a TCP hash", tcp: `hash_policy: [{filter_state: {key: trap}}],`},
	{where: "state of a refused connection", tcp: accessLogs("access_log")},
	{where: "connection read", terminal: "hcm"},
	{where: "connection write", terminal: "hcm"},
	{where: "connection close", terminal: "hcm", survives: true},
	{where: "network filter", terminal: "hcm"},
}

const minesConn = 16

// TestAPanicInAConnectionCostsThatConnection: others of the same listener and
// the process go on.
func TestAPanicInAConnectionCostsThatConnection(t *testing.T) {
	if len(mineConn) != minesConn {
		t.Fatalf("%d places, want %d", len(mineConn), minesConn)
	}
	echo := tcpOrigin(t, "")
	for _, c := range mineConn {
		t.Run(c.where+" "+c.terminal, func(t *testing.T) {
			m := newMinefield(t)
			m.cluster("echo", echo, false)
			last := fmt.Sprintf(`{name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, %s cluster: echo}}`, c.tcp)
			switch c.terminal {
			case "-":
				last = ""
			case "hcm":
				last = `{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: x, ` +
					direct("ok") + `, http_filters: [` + routerFilter + `]}}`
			}
			m.listener(fmt.Sprintf(`{name: l, %s address: {socket_address: {address: 127.0.0.1, port_value: 0}}, listener_filters: [%s], filter_chains: [{filters: [%s %s]}]}`,
				c.listener, strings.TrimSuffix(trapConfigYAML(c.where), ","), trapConfigYAML(c.where), last))
			m.apply()
			talk := func(cn *client) error {
				if c.terminal == "hcm" {
					if status, body := cn.get("/"); status != 200 {
						return errors.New(body)
					}
					return nil
				}
				if _, err := io.WriteString(cn, "hello"); err != nil {
					return err
				}
				_, err := io.ReadFull(cn, make([]byte, 5))
				return err
			}
			neighbour := dial(t, m.port)
			defer neighbour.Close()
			if err := talk(neighbour); err != nil {
				t.Fatal(err)
			}
			m.f.armed.Store(true)
			if victim, err := connect(t, m.port); err == nil {
				if err := talk(victim); (err == nil) != c.survives {
					t.Errorf("the connection that met the trap: %v", err)
				}
				_ = victim.Close()
			}
			told := time.Now().Add(20 * time.Second)
			for n := 0; n == 0 && time.Now().Before(told); time.Sleep(time.Millisecond) {
				n, _ = m.logs.about("trap: " + c.where)
			}
			for m.Active() > 1 && time.Now().Before(told) {
				time.Sleep(time.Millisecond)
			}
			m.f.armed.Store(false)
			if err := talk(neighbour); err != nil {
				t.Errorf("the neighbour: %v", err)
			}
			_ = neighbour.Close()
			m.settled(c.where, 1)
		})
	}
}

// mineConfig are places in the handling of configuration, and what a request
// gets then.
var mineConfig = []struct {
	where, kind string
	want        int
}{
	{"decode", "http", 200},            // rejected: the former configuration serves
	{"decode", "network", 200},         // as above
	{"decode", "listener", 200},        // as above
	{"decode", "route", 200},           // an override
	{"merge overrides", "routes", 200}, // can't be applied
	{"compile an HTTP filter", "http", 403},
	{"compile a network filter", "network", 0},
	{"compile a listener filter", "listener", 0},
	{"close a filter", "http", 200},
}

const minesConfig = 9

// TestAPanicInConfigurationCostsThatConfiguration: a resource that makes a
// decoder panic is rejected, a filter that can't be compiled fails closed, other
// listeners and the process go on.
func TestAPanicInConfigurationCostsThatConfiguration(t *testing.T) {
	if n := len(mineConfig); n != minesConfig || n+minesConn+minesHTTP < 40 {
		t.Fatalf("%d places, want %d", n, minesConfig)
	}
	for _, c := range mineConfig {
		t.Run(c.where+" "+c.kind, func(t *testing.T) {
			m := newMinefield(t)
			listener := func(name, kind, where string) string {
				entry := func(k string) string {
					if k != kind {
						return ""
					}
					return trapConfigYAML(where)
				}
				override := func(k string) string {
					return fmt.Sprintf(`typed_per_filter_config: {trap: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: %s, value: {where: %q}}}`, trapType, k)
				}
				onHost, onRoute, base := "", "", entry("http")
				switch kind {
				case "route":
					onRoute, base = ", "+override(where), trapConfigYAML("")
				case "routes":
					onHost, onRoute, base = override(where)+",", ", "+override(where), trapConfigYAML("")
				}
				return fmt.Sprintf(`{name: %s, address: {socket_address: {address: 127.0.0.1, port_value: 0}}, listener_filters: [%s], filter_chains: [{filters: [%s {name: hcm, typed_config: {
"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: x,
route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], %s routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: ok}} %s}]}]},
http_filters: [%s %s]}}]}]}`, name, strings.TrimSuffix(entry("listener"), ","), entry("network"), onHost, onRoute, base, routerFilter)
			}
			first, second := "", c.where
			if strings.HasPrefix(c.where, "close") {
				first, second = c.where, "" // of what is replaced
			}
			m.listener(listener("l", c.kind, first))
			m.listener(listener("other", "", ""))
			m.apply()
			other := m.portOf("other")
			if status, body := request(t, m.port, "/"); status != 200 {
				t.Fatal(status, body)
			}
			lines := 1
			if c.want == 403 {
				lines = 2 // for the route, and for requests without one
			}
			v, err := m.dec.FromYAML(xdsresource.ListenerType, []byte(listener("l", c.kind, second)))
			if rejected := c.where == "decode"; rejected != (err != nil) {
				t.Fatalf("decoding: %v", err)
			} else if rejected {
				lines = 0
				if !strings.Contains(err.Error(), "panic") || !strings.Contains(err.Error(), "trap: decode") {
					t.Errorf("the error does not say what happened: %v", err)
				}
			} else {
				m.res.Listeners["l"], _ = v.(*xdsresource.Listener)
				if err := m.Apply(&proxy.Resources{Listeners: maps.Clone(m.res.Listeners)}); (err != nil) != (c.where == "merge overrides") {
					t.Errorf("applying: %v", err)
				}
			}
			if status, body := request(t, m.port, "/"); status != c.want {
				t.Errorf("got %d %q, want %d", status, body, c.want)
			}
			if status, body := request(t, other, "/"); status != 200 {
				t.Errorf("another listener: %d %q", status, body)
			}
			if strings.HasPrefix(c.where, "close") {
				for until := time.Now().Add(20 * time.Second); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
					if n, _ := m.logs.about("trap: close"); n > 0 {
						break
					}
				}
			}
			m.settled(c.where, lines)
		})
	}
}
