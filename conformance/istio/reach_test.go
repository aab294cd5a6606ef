package istio

import (
	"context"
	"crypto/tls"
	"math/big"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestTrafficToAPodsAddress(t *testing.T) {
	s := begin(t, "workload")
	for _, c := range []struct {
		name, path string
		as         *client
		status     int
	}{
		{"a path for all", "/", s.stranger, 200},
		{"a denied path", "/private", s.stranger, 403},
		{"for whom it is not denied", "/private", s.shop, 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.web1.reset(nil)
			a := c.as.get(t, "http://127.16.0.11:8080"+c.path)
			if a.Status != c.status || a.Status == 403 && a.Body != denied {
				t.Errorf("%+v", a)
			}
			if a.Status == 200 {
				if r := saw(t, s.web1, 1)[0]; r.Target != c.path || r.Host != "127.16.0.11:8080" {
					t.Errorf("the application saw %+v", r)
				}
			} else {
				s.nothing(t)
			}
		})
	}
	saw(t, s.web2, 0)
}

func TestAServiceOutsideOfTheMesh(t *testing.T) {
	s := begin(t, "external")
	const external = "http://external.example"
	if a := s.shop.get(t, external+"/v1/items?x=1", "x-internal: secret"); a.Status != 200 || a.Body != "external" {
		t.Errorf("%+v", a)
	}
	r := saw(t, s.external, 1)[0]
	if r.Target != "/api/v1/items?x=1" || r.Host != "api.external.example" || r.Header.Get("x-from") != "mesh" || r.Header.Get("x-internal") != "" {
		t.Errorf("the application saw %+v", r)
	}
	for k := range r.Header {
		if k == "X-Envoy-Peer-Metadata" || k == "Baggage" || k == "X-Forwarded-Client-Cert" {
			t.Errorf("%s left the mesh: %v", k, r.Header[k])
		}
	}
	if a := s.shop.get(t, external+"/other"); a.Status != 451 || a.Body != "not from here" {
		t.Errorf("%+v", a)
	}
	saw(t, s.external, 1)
}

func TestANewCertificateIsUsedWithoutARestart(t *testing.T) {
	s := begin(t, "rotation")
	serial := func() *big.Int {
		pair, err := tls.LoadX509KeyPair(filepath.Join(s.dir, "shop-1/cert-chain.pem"), filepath.Join(s.dir, "shop-1/key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		d := tls.Dialer{Config: &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, NextProtos: []string{"h2"}}}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		c, err := d.DialContext(ctx, "tcp", "127.16.0.20:15008")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber
	}
	l := startLoad(t, s.shop, 2)
	l.await(t, "the load", func(a *answer) bool { return a.Status == 200 })
	first := serial()
	if err := s.ca.issue(filepath.Join(s.root("waypoint-0"), credentials), "app", "waypoint"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for serial().Cmp(first) == 0 {
		if time.Since(began) > 20*time.Second {
			t.Fatal("the certificate of before is still used after 20 s")
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Logf("used after %v", time.Since(began).Round(time.Millisecond))
	time.Sleep(100 * time.Millisecond)
	l.stop()
	l.workers.Wait()
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed: %v", n, l.sent.Load(), l.errs[0])
	}
	if n := l.opened.Load(); n != 2 {
		t.Errorf("%d connections were opened for 2 workers", n)
	}
}

// A terminating waypoint still serves: clients hear of its end later than it
// does. New connections are accepted, too, for as long as it is told to drain.
func TestATerminatingWaypointServesUntilItsDrainEnds(t *testing.T) {
	const drain = 6 * time.Second
	s := beginFor(t, "termination", drain)
	l := startLoad(t, s.shop, 2)
	l.await(t, "the load", func(a *answer) bool { return a.Status == 200 })
	began := time.Now()
	if err := s.waypoint.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	fresh, last := 0, time.Duration(0)
	for time.Since(began) < drain/4 {
		c := newClient(s.stranger.proxy)
		a, err := c.try(http.MethodGet, web+"/")
		c.http.CloseIdleConnections()
		if err != nil || a.Status != 200 {
			for _, p := range s.procs {
				if strings.Contains(p.cmd.String(), "stranger-1") {
					o := p.output()
					t.Log(o[max(0, len(o)-1500):])
				}
			}
			t.Fatalf("%v after SIGTERM, a new connection: %+v, %v", time.Since(began), a, err)
		}
		fresh++
		last = time.Since(began)
		time.Sleep(10 * time.Millisecond)
	}
	probe := http.Client{Timeout: drain / 2, Transport: &http.Transport{DisableKeepAlives: true}}
	if resp, err := probe.Get("http://127.0.0.1:15021/healthz/ready"); err != nil || resp.StatusCode != 503 {
		t.Errorf("readiness while draining: %v, %v", resp, err)
	}
	l.stop()
	l.workers.Wait()
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests on open connections failed: %v", n, l.sent.Load(), l.errs[0])
	}
	select {
	case <-s.waypoint.done:
	case <-time.After(drain + 20*time.Second):
		t.Error("the waypoint did not end")
	}
	t.Logf("%d new connections were served until %v, it ended %v after SIGTERM", fresh, last.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
}
