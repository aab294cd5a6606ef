package istio

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"istio.io/istio/pkg/config/schema/gvk"
)

// A connection that was opened under one policy must not outlive it.
func TestARevokedPermissionEndsUnderLoad(t *testing.T) {
	s := begin(t, "revoke")
	l := startLoad(t, s.shop, 4)
	l.await(t, "the load", func(a *answer) bool { return a.Status == 200 })
	change := func(edit func(yaml string) string) {
		t.Helper()
		old := s.istiod.Store().Get(gvk.AuthorizationPolicy, "clients", "app")
		doc := edit(`apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: clients, namespace: app}
spec:
  targetRefs: [{group: "", kind: Service, name: web}]
  action: ALLOW
  rules: [{from: [{source: {namespaces: [client]}}]}]
`)
		cs, err := istioConfigs(doc)
		if err != nil {
			t.Fatal(err)
		}
		cs[0].ResourceVersion = old.ResourceVersion
		if _, err := s.istiod.Store().Update(cs[0]); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		change(func(y string) string { return strings.Replace(y, "[client]", "[others]", 1) })
		l.await(t, "the revocation", func(a *answer) bool { return a.Status == 403 && a.Body == denied })
		n := len(s.web1.requests()) + len(s.web2.requests())
		time.Sleep(50 * time.Millisecond)
		if more := len(s.web1.requests()) + len(s.web2.requests()) - n; more > 0 {
			t.Errorf("%d requests came through after the revocation was in force", more)
		}
		change(func(y string) string { return y })
		l.await(t, "the permission", func(a *answer) bool { return a.Status == 200 })
	}
	l.stop()
	l.workers.Wait()
	for _, e := range l.errs {
		if !strings.HasPrefix(e, `403 "RBAC: access denied" <nil>`) {
			t.Errorf("a request failed: %s", e)
		}
	}
	t.Logf("%d requests, %d connections for 4 workers", l.sent.Load(), l.opened.Load())
}

func TestTheWaypointOutlivesItsConnectionToIstiod(t *testing.T) {
	s := begin(t, "reconnect")
	h := func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get("x-revision")) }
	s.web1.reset(h)
	s.web2.reset(h)
	l := startLoad(t, s.shop, 4)
	l.await(t, "the load", func(a *answer) bool { return a.Body == "0" })
	s.relay.cut()
	s.setRevision(t, 1)
	time.Sleep(300 * time.Millisecond)
	if a := s.shop.get(t, web+"/"); a.Status != 200 || a.Body != "0" {
		t.Errorf("without istiod: %+v", a)
	}
	s.relay.mend()
	d := l.await(t, "the change of the outage", func(a *answer) bool { return a.Body == "1" })
	t.Logf("the change of the outage was seen %v after its end", d.Round(time.Millisecond))
	l.stop()
	l.workers.Wait()
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed: %v", n, l.sent.Load(), l.errs[0])
	}
	if n := l.opened.Load(); n != 4 {
		t.Errorf("%d connections were opened for 4 workers", n)
	}
}

func TestProtocolsKeepTheirForm(t *testing.T) {
	s := begin(t, "protocols")
	t.Run("gRPC", func(t *testing.T) { s.grpc(t) })
	t.Run("WebSocket", func(t *testing.T) { s.webSocket(t) })
	t.Run("large bodies", func(t *testing.T) { s.bodies(t) })
}

// grpc sends calls over HTTP/2, whose status is a trailer.
func (s *scenario) grpc(t *testing.T) {
	s.web1.reset(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("content-type", "application/grpc")
		w.Header().Set("trailer", "grpc-status, grpc-message")
		_, _ = w.Write([]byte{0, 0, 0, 0, 2, 'o', 'k'})
		w.Header().Set("grpc-status", "0")
		w.Header().Set("grpc-message", "done")
	})
	resp, body := s.shop.call(t, "/shop.Orders/List")
	if string(body[5:]) != "ok" || resp.Trailer.Get("grpc-status") != "0" || resp.Trailer.Get("grpc-message") != "done" {
		t.Errorf("the client got %q, trailers %v", body, resp.Trailer)
	}
	r := saw(t, s.web1, 1)[0]
	if r.Proto != "HTTP/2.0" || r.Header.Get("te") != "trailers" || r.Header.Get("x-route") != "orders" || r.Body[5:] != "hello" {
		t.Errorf("the application saw %+v", r)
	}
	s.web1.reset(nil)
	if resp, _ := s.shop.call(t, "/shop.Orders/Delete"); resp.StatusCode != 200 || resp.Header.Get("grpc-status") != "12" {
		t.Errorf("a method that no route has: %d, %v, want status 12 (unimplemented) as gRPC", resp.StatusCode, resp.Header)
	}
	saw(t, s.web1, 0)
}

// webSocket upgrades a connection and sends bytes both ways.
func (s *scenario) webSocket(t *testing.T) {
	s.web1.reset(func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, err.Error(), 500)
			return
		}
		defer c.Close()
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\nhello from %s\n", r.URL.Path)
		for {
			line, err := rw.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprint(c, strings.ToUpper(line))
		}
	})
	c, err := s.shop.dial(t.Context(), "web.app.svc.cluster.local:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprint(c, "GET /chat HTTP/1.1\r\nhost: web.app.svc.cluster.local\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-key: x\r\nsec-websocket-version: 13\r\n\r\n")
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 101 || !strings.EqualFold(resp.Header.Get("upgrade"), "websocket") {
		t.Fatalf("%+v, %v", resp, err)
	}
	if line, err := br.ReadString('\n'); line != "hello from /chat\n" {
		t.Fatalf("%q, %v", line, err)
	}
	for i := range 3 {
		fmt.Fprintf(c, "line %d\n", i)
		if line, err := br.ReadString('\n'); line != fmt.Sprintf("LINE %d\n", i) {
			t.Fatalf("%q, %v", line, err)
		}
	}
}

// bodies sends megabytes both ways at once, of unknown length. Trailers of
// HTTP/1.1 end here, as in Envoy unless it is told to keep them.
func (s *scenario) bodies(t *testing.T) {
	const size = 4 << 20
	big := strings.Repeat("0123456789abcdef", size/16)
	s.web1.reset(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("trailer", "x-sum")
		for i := 0; i < len(big); i += 64 << 10 {
			_, _ = io.WriteString(w, big[i:i+64<<10])
		}
		w.Header().Set("x-sum", "7")
	})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, web+"/big", struct{ io.Reader }{strings.NewReader(big)})
			req.Trailer = http.Header{"X-Client-Sum": {"9"}}
			resp, err := s.shop.http.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil || string(b) != big || resp.Trailer.Get("x-sum") != "" {
				t.Errorf("the client got %d bytes, trailers %v, %v", len(b), resp.Trailer, err)
			}
		})
	}
	wg.Wait()
	for _, r := range saw(t, s.web1, 4) {
		if r.Body != big || r.Trailer.Get("x-client-sum") != "" {
			t.Errorf("the application saw %d bytes, trailers %v", len(r.Body), r.Trailer)
		}
	}
}

func TestOutlierDetectionAndCircuitBreakers(t *testing.T) {
	s := begin(t, "outlier")
	s.web1.reset(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	failed := 0
	for range 60 {
		if a := s.shop.get(t, web+"/"); a.Status != 200 {
			failed++
		}
	}
	if n := len(s.web1.requests()); failed != 3 || n != 3 {
		t.Errorf("%d requests failed, the failing pod saw %d, want 3: it is ejected after as many", failed, n)
	}
	release := make(chan struct{})
	s.web2.reset(func(http.ResponseWriter, *http.Request) { <-release })
	var wg sync.WaitGroup
	var mu sync.Mutex
	count := map[int]int{}
	for range 10 {
		wg.Go(func() {
			a, err := s.shop.try(http.MethodGet, "http://web-v2.app.svc.cluster.local/")
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			count[a.Status]++
			mu.Unlock()
		})
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		mu.Lock()
		n := count[503]
		mu.Unlock()
		if n == 8 {
			break
		}
	}
	close(release)
	wg.Wait()
	if count[200] != 2 || count[503] != 8 || len(s.web2.requests()) != 2 {
		t.Errorf("answers %v, the application saw %d, want 2 of 10 requests", count, len(s.web2.requests()))
	}
}

func TestAnExternalAuthorizer(t *testing.T) {
	s := begin(t, "extauthz")
	const v1 = "http://web-v1.app.svc.cluster.local"
	s.web2.reset(func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("x-token") {
		case "good":
			w.Header().Set("x-checked", "yes")
		case "slow":
			time.Sleep(time.Second)
		default:
			w.Header().Set("x-why", "no token")
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, "ask for a token")
		}
	})
	a := s.shop.get(t, v1+"/checked/1", "x-checked: forged")
	if a.Status != 403 || a.Body != "ask for a token" || a.Header.Get("x-why") != "no token" {
		t.Errorf("%+v", a)
	}
	saw(t, s.web1, 0)
	if a := s.shop.get(t, v1+"/checked/2", "x-token: good", "x-checked: forged"); a.Status != 200 {
		t.Errorf("%+v", a)
	}
	if r := saw(t, s.web1, 1)[0]; r.Header.Get("x-checked") != "yes" {
		t.Errorf("the application saw %+v", r)
	}
	if r := saw(t, s.web2, 2); r[1].Target != "/checked/2" || r[1].Method != "GET" || r[1].Header.Get("x-token") != "good" {
		t.Errorf("the authorizer saw %+v", r[1])
	}
	if a := s.shop.get(t, v1+"/free"); a.Status != 200 {
		t.Errorf("a path that isn't checked: %+v", a)
	}
	saw(t, s.web2, 2)
}

// field is a field of bytes of a protobuf message.
func field(number byte, parts ...string) string {
	s := strings.Join(parts, "")
	return string([]byte{number<<3 | 2, byte(len(s))}) + s
}

// headerOption is a HeaderValueOption.
func headerOption(name, value string) string { return field(1, field(1, name), field(2, value)) }

func TestAnExternalAuthorizerOverGRPC(t *testing.T) {
	s := begin(t, "extauthzgrpc")
	const v1 = "http://web-v1.app.svc.cluster.local"
	var down atomic.Bool
	s.web2.reset(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("content-type", "application/grpc")
		w.Header().Set("trailer", "grpc-status")
		if down.Load() {
			w.Header().Set("grpc-status", "14")
			return
		}
		asked := s.web2.requests()
		q := asked[len(asked)-1].Body
		answer := field(1, "\x08\x07") + field(2, field(1, "\x08\xa1\x03"), field(2, headerOption("x-why", "no token")), field(3, "ask for a token")) // 7; 417
		if strings.Contains(q, field(1, "x-token")+field(2, "good")) && strings.Contains(q, "hello") {
			answer = field(3, field(2, headerOption("x-checked", "yes")))
		}
		_, _ = io.WriteString(w, string([]byte{0, 0, 0, 0, byte(len(answer))})+answer)
		w.Header().Set("grpc-status", "0")
	})
	post := func(path, token string) (int, string, http.Header) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, v1+path, strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("x-token", token)
		req.Header.Set("x-checked", "forged")
		resp, err := s.shop.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b), resp.Header
	}
	if status, body, h := post("/checked/1", "bad"); status != 417 || body != "ask for a token" || h.Get("x-why") != "no token" {
		t.Errorf("%d %q %v", status, body, h)
	}
	saw(t, s.web1, 0)
	if status, body, _ := post("/checked/2", "good"); status != 200 {
		t.Errorf("%d %q", status, body)
	}
	if r := saw(t, s.web1, 1)[0]; r.Header.Get("x-checked") != "yes" || r.Body != "hello" {
		t.Errorf("the application saw %+v", r)
	}
	for _, q := range saw(t, s.web2, 2) {
		if q.Proto != "HTTP/2.0" || q.Target != "/envoy.service.auth.v3.Authorization/Check" || !strings.Contains(q.Body, "spiffe://cluster.local/ns/client/sa/shop") {
			t.Errorf("the authorizer saw %+v", q)
		}
	}
	down.Store(true)
	if status, body, _ := post("/checked/3", "good"); status != 403 {
		t.Errorf("without a decision: %d %q", status, body)
	}
	if status, body, _ := post("/free", "bad"); status != 200 {
		t.Errorf("a path that isn't checked: %d %q", status, body)
	}
	saw(t, s.web2, 3)
}

func TestTelemetryNamesBothEnds(t *testing.T) {
	s := begin(t, "telemetry")
	for range 4 {
		s.shop.get(t, web+"/")
	}
	s.web1.reset(failing(100))
	s.web2.reset(failing(100))
	s.stranger.get(t, web+"/")
	var lines []string
	// want fails unless the series with all labels add up to n.
	want := func(n int, labels ...string) {
		t.Helper()
		sum := 0
		for _, l := range lines {
			ok := true
			for _, x := range labels {
				ok = ok && strings.Contains(l, x)
			}
			if ok {
				v, err := strconv.Atoi(l[strings.LastIndexByte(l, ' ')+1:])
				if err != nil {
					t.Error(err)
				}
				sum += v
			}
		}
		if sum != n {
			t.Errorf("the series with %q add up to %d, want %d:\n%s", labels, sum, n, strings.Join(lines, "\n"))
		}
	}
	// A request counts when it is over, and its client may know that earlier.
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		lines = lines[:0]
		for _, l := range strings.Split(s.metrics(t), "\n") {
			if strings.HasPrefix(l, "istio_requests_total{") {
				lines = append(lines, l)
			}
		}
		if strings.Contains(strings.Join(lines, "\n"), "/sa/stranger") {
			break
		}
	}
	// The source's other labels would come from its address, which pods of this
	// mesh have only in name.
	want(4, `reporter="waypoint"`, `source_principal="spiffe://cluster.local/ns/client/sa/shop"`, `source_workload_namespace="client"`,
		`destination_workload="web-`, `destination_principal="spiffe://cluster.local/ns/app/sa/web"`, `destination_app="web"`, `destination_version="v`,
		`destination_service="web.app.svc.cluster.local"`, `destination_service_name="web"`, `destination_service_namespace="app"`,
		`destination_workload_namespace="app"`, `response_code="200"`, `connection_security_policy="mutual_tls"`, `request_host="web.app.svc.cluster.local"`)
	want(1, `source_principal="spiffe://cluster.local/ns/client/sa/stranger"`, `response_code="503"`)
}
