package proxy_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/dns"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/proxy"
)

// testNames is what slowNames has set.
var testNames dns.Environment

// slowNames resolves every name to 127.0.0.1, after a while; names that begin
// with "never" are not answered.
func slowNames(t *testing.T, d time.Duration) {
	t.Helper()
	end := make(chan struct{})
	var mu sync.Mutex // a lookup that was given up may still begin to ask
	var wg sync.WaitGroup
	ended := false
	t.Cleanup(func() {
		mu.Lock()
		ended = true
		close(end)
		mu.Unlock()
		wg.Wait()
		testNames = dns.Environment{}
	})
	testNames = dns.Environment{Dial: func(context.Context, string, string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if ended {
			return nil, net.ErrClosed
		}
		ours, theirs := net.Pipe()
		wg.Go(func() {
			defer ours.Close()
			for answerName(ours, d, end) == nil {
			}
		})
		return theirs, nil
	}}
}

func answerName(c net.Conn, d time.Duration, end <-chan struct{}) error {
	var n uint16
	if err := binary.Read(c, binary.BigEndian, &n); err != nil {
		return err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	var q dnsmessage.Message
	if err := q.Unpack(b); err != nil {
		return err
	}
	if strings.HasPrefix(q.Questions[0].Name.String(), "never") {
		<-end
		return io.EOF
	}
	time.Sleep(d)
	q.Response, q.Additionals = true, nil
	if q.Questions[0].Type == dnsmessage.TypeA {
		q.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 60},
			Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
		}}
	}
	out, err := q.Pack()
	if err != nil {
		return err
	}
	_, err = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...))
	return err
}

const dnsWorld = `
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: edge
  address: {socket_address: {address: 127.0.0.1, port_value: ${PORT}}}
  filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: edge,
    route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: named}}]}]},
    http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]
- {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: named, type: ${TYPE}, dns_lookup_family: V4_ONLY, load_assignment: {cluster_name: named, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: ${NAME}, port_value: ${ORIGIN}}}}}]}]}}
`

// Envoy starts to listen when the first clusters have resolved their names. A
// proxy that says it is ready must not answer that a cluster doesn't exist.
func TestTheFirstConfigurationWaitsForTheNamesOfItsClusters(t *testing.T) {
	slowNames(t, 200*time.Millisecond)
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "app") }))
	t.Cleanup(origin.Close)
	for _, typ := range []string{"STRICT_DNS", "LOGICAL_DNS"} {
		vars := map[string]string{"PORT": fmt.Sprint(freePort(t)), "TYPE": typ, "NAME": "slow.example", "ORIGIN": strings.TrimPrefix(origin.URL, "http://127.0.0.1:")}
		t.Run(typ+" over ADS", func(t *testing.T) {
			cp := xdstest.New(t, xdstest.Options{})
			w := &pushed{t: t, cp: cp, vars: vars}
			w.set(dnsWorld)
			startProxy(t, fmt.Sprintf(adsBootstrap, portOf(cp)), nil)
			var port int
			_, _ = fmt.Sscan(vars["PORT"], &port)
			if s, body := request(t, port, "/"); s != 200 || body != "app" {
				t.Errorf("the first request: %d %q", s, body)
			}
		})
		t.Run(typ+" from the file", func(t *testing.T) {
			port := freePort(t)
			doc := strings.ReplaceAll(dnsWorld, `"@type": type.googleapis.com/envoy.config.listener.v3.Listener`+"\n  name", "name")
			doc = strings.ReplaceAll(doc, `"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, `, "")
			l, c, _ := strings.Cut(doc, "\n- {name: named")
			doc = "static_resources:\n  listeners:" + strings.ReplaceAll(l, "\n", "\n  ") + "\n  clusters:\n  - {name: named" + c
			vars["PORT"] = fmt.Sprint(port)
			for k, v := range vars {
				doc = strings.ReplaceAll(doc, "${"+k+"}", v)
			}
			startProxy(t, doc, nil)
			if s, body := request(t, port, "/"); s != 200 || body != "app" {
				t.Errorf("the first request: %d %q", s, body)
			}
		})
	}
}

// A name that nobody answers must not hold up the end of the process.
func TestAProcessThatWaitsForNamesEndsAtOnce(t *testing.T) {
	slowNames(t, 0)
	cp := xdstest.New(t, xdstest.Options{})
	w := &pushed{t: t, cp: cp, vars: map[string]string{"PORT": fmt.Sprint(freePort(t)), "TYPE": "STRICT_DNS", "NAME": "never.example", "ORIGIN": "9"}}
	w.set(dnsWorld)
	p, err := proxy.FromBootstrap(fmt.Appendf(nil, adsBootstrap, portOf(cp)), proxy.ProcessOptions{Registry: builtin.Registry(), Names: testNames, DrainTime: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.Run(t.Context()) }()
	cp.Await(20*time.Second, func(rs []xdstest.Request) bool { return len(rs) > 3 })
	time.Sleep(100 * time.Millisecond)
	if p.Ready() == nil {
		t.Error("ready although the cluster has no answer")
	}
	p.Quit()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the end takes more than 5 s")
	}
}
