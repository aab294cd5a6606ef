package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/proxy/agent"
)

const farewellYAML = `
static_resources:
  listeners:
  - name: l
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: x,
      route_config: {virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}]},
      http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]
`

// startFarewell runs a proxy that ends as a pod's does; end tells it to.
func startFarewell(t *testing.T, d agent.Drain) (url string, p *Process, end func(), ended chan error) {
	t.Helper()
	port := FreePorts(t, 1)[0]
	ready := make(chan struct{})
	p, err := FromBootstrap(fmt.Appendf(nil, farewellYAML, port), ProcessOptions{Registry: builtin.Registry(), OnReady: func() { close(ready) }})
	if err != nil {
		t.Fatal(err)
	}
	p.farewell = &d
	ctx, cancel := context.WithCancel(t.Context())
	ended = make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	<-ready
	return fmt.Sprintf("http://127.0.0.1:%d", port), p, cancel, ended
}

func TestATerminatingPodServesForTheTimeThatItIsGiven(t *testing.T) {
	url, p, end, ended := startFarewell(t, agent.Drain{Termination: 3 * time.Second})
	end()
	began := time.Now()
	cl := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for time.Since(began) < 400*time.Millisecond {
		resp, err := cl.Get(url)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp, err)
		}
		_ = resp.Body.Close()
		time.Sleep(20 * time.Millisecond)
	}
	if err := p.Ready(); err == nil {
		t.Error("ready while it ends")
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d < 3*time.Second {
		t.Errorf("ended after %v", d)
	}
}

func TestATerminatingPodWaitsForItsLastConnection(t *testing.T) {
	url, _, end, ended := startFarewell(t, agent.Drain{ExitOnZero: true, Minimum: 100 * time.Millisecond, Termination: time.Millisecond})
	c, err := net.Dial("tcp", url[len("http://"):])
	if err != nil {
		t.Fatal(err)
	}
	end()
	select {
	case <-ended:
		t.Error("did not wait for the connection")
	case <-time.After(400 * time.Millisecond):
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"); err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(c); err != nil || len(b) == 0 {
		t.Errorf("%q, %v", b, err)
	}
	_ = c.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestAnOperatorCutsTheTimeOfATerminatingPodShort(t *testing.T) {
	for name, d := range map[string]agent.Drain{
		"a fixed time":        {Termination: time.Hour},
		"the last connection": {ExitOnZero: true, Minimum: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			_, p, end, ended := startFarewell(t, d)
			end()
			for p.Ready() == nil {
				time.Sleep(time.Millisecond)
			}
			p.Quit() // changes nothing: it is ending
			select {
			case <-ended:
				t.Error("did not take its time")
			case <-time.After(50 * time.Millisecond):
			}
			p.Exit()
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("does not end")
			}
		})
	}
}
