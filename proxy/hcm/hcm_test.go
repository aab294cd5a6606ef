package hcm

import (
	"bufio"
	"net/http"
	"net/netip"
	"sort"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// seen is a terminal filter that answers with the request as filters see it.
type seen struct{ want map[string]bool }

func (f seen) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	if s.Request.Get(message.Path) == "/panic" {
		panic("a filter's bug")
	}
	if s.Request.Get(message.Path) == "/body" {
		if _, _, err := s.Body.Next(); err != nil {
			return nil, err
		}
	}
	if s.Request.Get(message.Path) == "/empty" && !message.IsEmpty(s.Body) {
		return s.LocalReply(500, "", "not empty", 0), nil
	}
	var lines []string
	for i := range s.Request.Len() {
		if h := s.Request.At(i); f.want == nil || f.want[h.Name] {
			lines = append(lines, h.Name+": "+h.Value)
		}
	}
	sort.Strings(lines)
	lines = append(lines, "remote "+s.Info.Conn.Remote.Addr().String())
	return s.LocalReply(200, strings.Join(lines, "\n"), "seen", 0), nil
}

// ask sends one raw request to a manager and returns status, headers and body.
func ask(t *testing.T, spec *xdsresource.HTTPConnectionManager, tls *streaminfo.TLS, want []string, raw string) (*http.Response, string) {
	t.Helper()
	f := seen{}
	if want != nil {
		f.want = map[string]bool{}
		for _, n := range want {
			f.want[n] = true
		}
	}
	m, err := New(Config{Spec: spec, Routes: &Routes{}, DefaultChain: []filters.HTTPFilter{f}})
	if err != nil {
		t.Fatal(err)
	}
	client := netip.MustParseAddrPort("9.9.9.9:1000")
	local := netip.MustParseAddrPort("10.0.0.1:80")
	near, far := netio.Pipe(client, local)
	info := &streaminfo.Info{Conn: &streaminfo.Conn{Local: local, Remote: client, DirectRemote: client, TLS: tls}}
	done := make(chan struct{})
	go m.Serve(&filters.Connection{Conn: far, Info: info}, func() { close(done) })
	if _, err := near.Write([]byte(raw)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(near), nil)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := resp.Body.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			break
		}
	}
	_ = near.Close()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("the connection does not end")
	}
	return resp, b.String()
}

var mutual = &streaminfo.TLS{
	Peer:      streaminfo.Certificate{URISANs: []string{"spiffe://td/ns/a/sa/b"}, DNSSANs: []string{"b.a"}, Subject: "O=x", Digest: "ab12", PEM: "-----BEGIN CERTIFICATE-----\na+/=\n"},
	LocalCert: streaminfo.Certificate{URISANs: []string{"spiffe://td/ns/w/sa/w"}, Digest: "ff"},
}

// admission: what a request looks like behind the manager. want lists the lines
// that filters see, of the named headers, and the client address.
var admission = []struct {
	name    string
	spec    xdsresource.HTTPConnectionManager
	tls     *streaminfo.TLS
	headers string
	look    []string
	want    string
}{
	{"the client's certificate header is removed", xdsresource.HTTPConnectionManager{}, mutual, "x-forwarded-client-cert: forged\r\n", []string{"x-forwarded-client-cert"}, "remote 9.9.9.9"},
	{"forward only keeps it on mutual TLS", xdsresource.HTTPConnectionManager{ForwardClientCert: xdsresource.XFCCForwardOnly}, mutual, "x-forwarded-client-cert: a\r\n", []string{"x-forwarded-client-cert"}, "x-forwarded-client-cert: a\nremote 9.9.9.9"},
	{"forward only drops it without TLS", xdsresource.HTTPConnectionManager{ForwardClientCert: xdsresource.XFCCForwardOnly}, nil, "x-forwarded-client-cert: a\r\n", []string{"x-forwarded-client-cert"}, "remote 9.9.9.9"},
	{"sanitize and set replaces it", xdsresource.HTTPConnectionManager{ForwardClientCert: xdsresource.XFCCSanitizeSet, SetClientCert: xdsresource.SetClientCertDetails{Subject: true, URI: true, DNS: true}}, mutual, "x-forwarded-client-cert: forged\r\n", []string{"x-forwarded-client-cert"}, "x-forwarded-client-cert: By=spiffe://td/ns/w/sa/w;Hash=ab12;Subject=\"O=x\";URI=spiffe://td/ns/a/sa/b;DNS=b.a\nremote 9.9.9.9"},
	{"all spellings of it are replaced", xdsresource.HTTPConnectionManager{ForwardClientCert: xdsresource.XFCCSanitizeSet}, mutual, "X-Forwarded-Client-Cert: a\r\nx-forwarded-client-cert: b\r\nx_forwarded_client_cert: c\r\nx-forwarded_client-cert: d\r\n", []string{"x-forwarded-client-cert", "x_forwarded_client_cert", "x-forwarded_client-cert"}, "x-forwarded-client-cert: By=spiffe://td/ns/w/sa/w;Hash=ab12\nremote 9.9.9.9"},
	{"append puts this hop behind", xdsresource.HTTPConnectionManager{ForwardClientCert: xdsresource.XFCCAppendForward}, mutual, "x-forwarded-client-cert: a\r\n", []string{"x-forwarded-client-cert"}, "x-forwarded-client-cert: a,By=spiffe://td/ns/w/sa/w;Hash=ab12\nremote 9.9.9.9"},
	{"the certificate is encoded as Envoy does", xdsresource.HTTPConnectionManager{ForwardClientCert: xdsresource.XFCCSanitizeSet, SetClientCert: xdsresource.SetClientCertDetails{Cert: true}}, mutual, "", []string{"x-forwarded-client-cert"}, "x-forwarded-client-cert: By=spiffe://td/ns/w/sa/w;Hash=ab12;Cert=\"-----BEGIN%20CERTIFICATE-----%0Aa%2B%2F%3D%0A\"\nremote 9.9.9.9"},
	{"always forward keeps what came", xdsresource.HTTPConnectionManager{ForwardClientCert: xdsresource.XFCCAlwaysForwardOnly}, nil, "x-forwarded-client-cert: a\r\n", []string{"x-forwarded-client-cert"}, "x-forwarded-client-cert: a\nremote 9.9.9.9"},
	{"the rightmost forwarded address is the client", xdsresource.HTTPConnectionManager{}, nil, "x-forwarded-for: 1.1.1.1, 2.2.2.2\r\n", []string{"x-forwarded-for"}, "x-forwarded-for: 1.1.1.1, 2.2.2.2\nremote 2.2.2.2"},
	{"one trusted hop skips one address", xdsresource.HTTPConnectionManager{XFFNumTrustedHops: 1}, nil, "x-forwarded-for: 1.1.1.1, 2.2.2.2\r\n", []string{"x-forwarded-for"}, "x-forwarded-for: 1.1.1.1, 2.2.2.2\nremote 1.1.1.1"},
	{"an edge believes the socket", xdsresource.HTTPConnectionManager{UseRemoteAddress: true}, nil, "x-forwarded-for: 1.1.1.1\r\n", []string{"x-forwarded-for", "x-envoy-external-address"}, "x-envoy-external-address: 9.9.9.9\nx-forwarded-for: 1.1.1.1,9.9.9.9\nremote 9.9.9.9"},
	{"an edge overwrites the forwarded scheme", xdsresource.HTTPConnectionManager{UseRemoteAddress: true}, nil, "x-forwarded-proto: https\r\n", []string{"x-forwarded-proto", ":scheme"}, ":scheme: http\nx-forwarded-proto: http\nremote 9.9.9.9"},
	{"an external request loses internal headers", xdsresource.HTTPConnectionManager{}, nil, "x-envoy-max-retries: 3\r\nx-envoy-internal: true\r\n", []string{"x-envoy-max-retries", "x-envoy-internal"}, "remote 9.9.9.9"},
	{"an internal request keeps them", xdsresource.HTTPConnectionManager{InternalCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, nil, "x-forwarded-for: 10.1.1.1\r\nx-envoy-max-retries: 3\r\n", []string{"x-envoy-max-retries", "x-envoy-internal"}, "x-envoy-internal: true\nx-envoy-max-retries: 3\nremote 10.1.1.1"},
	{"two addresses are never internal", xdsresource.HTTPConnectionManager{InternalCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, nil, "x-forwarded-for: 10.1.1.1, 10.1.1.2\r\nx-envoy-max-retries: 3\r\n", []string{"x-envoy-max-retries", "x-envoy-internal"}, "remote 10.1.1.2"},
	{"a matching port is stripped", xdsresource.HTTPConnectionManager{StripMatchingPort: true}, nil, "host: a.b:80\r\n", []string{":authority"}, ":authority: a.b\nremote 9.9.9.9"},
	{"another port is not", xdsresource.HTTPConnectionManager{StripMatchingPort: true}, nil, "host: a.b:81\r\n", []string{":authority"}, ":authority: a.b:81\nremote 9.9.9.9"},
	{"any port is stripped, IPv6 is kept whole", xdsresource.HTTPConnectionManager{StripAnyPort: true}, nil, "host: [::1]:81\r\n", []string{":authority"}, ":authority: [::1]\nremote 9.9.9.9"},
	{"a trailing dot is stripped before the port", xdsresource.HTTPConnectionManager{}, nil, "host: a.b.:81\r\n", []string{":authority"}, ":authority: a.b:81\nremote 9.9.9.9"},
	{"names with underscores are dropped", xdsresource.HTTPConnectionManager{UnderscoreAction: xdsresource.UnderscoreDrop}, nil, "x_a: 1\r\nx-b: 2\r\n", []string{"x_a", "x-b"}, "x-b: 2\nremote 9.9.9.9"},
	{"look-alikes of framing fields are dropped", xdsresource.HTTPConnectionManager{}, nil, "transfer_encoding: chunked\r\nx_a: 1\r\ncontent_length: 5\r\n", []string{"transfer_encoding", "content_length", "x_a"}, "x_a: 1\nremote 9.9.9.9"},
	{"via is one field", xdsresource.HTTPConnectionManager{Via: "1.1 us"}, nil, "via: 1.0 a\r\n", []string{"via"}, "via: 1.0 a, 1.1 us\nremote 9.9.9.9"},
	{"the scheme of an absolute target stays", xdsresource.HTTPConnectionManager{Server: transport.ServerConfig{AllowAbsoluteURL: true}}, nil, "", []string{":scheme", "x-forwarded-proto"}, ":scheme: https\nx-forwarded-proto: http\nremote 9.9.9.9"},
	{"the scheme is what was forwarded", xdsresource.HTTPConnectionManager{}, nil, "x-forwarded-proto: https\r\n", []string{":scheme"}, ":scheme: https\nremote 9.9.9.9"},
	{"a request id is kept inside", xdsresource.HTTPConnectionManager{GenerateRequestID: true}, nil, "x-request-id: mine\r\n", []string{"x-request-id"}, "x-request-id: mine\nremote 9.9.9.9"},
}

func TestRequestsAreAdmittedAsByEnvoy(t *testing.T) {
	if len(admission) != 25 {
		t.Fatalf("%d cases, want 25", len(admission))
	}
	for _, c := range admission {
		t.Run(c.name, func(t *testing.T) {
			h := c.headers
			if !strings.Contains(h, "host:") {
				h = "host: a\r\n" + h
			}
			spec := c.spec
			spec.Codec = xdsresource.CodecHTTP1
			target := "/"
			if spec.Server.AllowAbsoluteURL {
				target = "https://a/"
			}
			resp, body := ask(t, &spec, c.tls, c.look, "GET "+target+" HTTP/1.1\r\n"+h+"\r\n")
			if resp.StatusCode != http.StatusOK || body != c.want {
				t.Errorf("got %d\n%s\nwant\n%s", resp.StatusCode, body, c.want)
			}
		})
	}
}

func TestRefusedRequestsSayWhy(t *testing.T) {
	cases := []struct {
		name, raw string
		spec      xdsresource.HTTPConnectionManager
		status    int
		closes    bool
	}{
		{"no host", "GET / HTTP/1.1\r\n\r\n", xdsresource.HTTPConnectionManager{}, 400, true},
		{"a host that ends in two dots", "GET / HTTP/1.1\r\nhost: a..\r\n\r\n", xdsresource.HTTPConnectionManager{}, 400, true},
		{"two dots before a port", "GET / HTTP/1.1\r\nhost: a..:80\r\n\r\n", xdsresource.HTTPConnectionManager{}, 400, true},
		{"a dot for a host", "GET / HTTP/1.1\r\nhost: .\r\n\r\n", xdsresource.HTTPConnectionManager{}, 400, true},
		{"a dot and a port for a host", "GET / HTTP/1.1\r\nhost: .:80\r\n\r\n", xdsresource.HTTPConnectionManager{}, 400, true},
		{"a fragment", "GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n", xdsresource.HTTPConnectionManager{}, 400, true},
		{"a path with a NUL", "GET /%00 HTTP/1.1\r\nhost: a\r\n\r\n", xdsresource.HTTPConnectionManager{NormalizePath: true}, 400, true},
		{"an escaped slash", "GET /a%2Fb HTTP/1.1\r\nhost: a\r\n\r\n", xdsresource.HTTPConnectionManager{EscapedSlashes: xdsresource.RejectRequest}, 400, true},
		{"an underscore", "GET / HTTP/1.1\r\nhost: a\r\nx_a: 1\r\n\r\n", xdsresource.HTTPConnectionManager{UnderscoreAction: xdsresource.UnderscoreReject}, 400, true},
		{"an escaped slash to be redirected", "GET /a%2Fb HTTP/1.1\r\nhost: a\r\n\r\n", xdsresource.HTTPConnectionManager{EscapedSlashes: xdsresource.UnescapeAndRedirect}, 307, false},
		{"an upgrade that is not allowed", "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", xdsresource.HTTPConnectionManager{}, 403, true},
		{"OPTIONS of no path", "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", xdsresource.HTTPConnectionManager{}, 404, false},
		{"a target with a query only", "GET http://a?b HTTP/1.1\r\nhost: a\r\n\r\n", xdsresource.HTTPConnectionManager{Server: transport.ServerConfig{AllowAbsoluteURL: true}}, 404, false},
		{"an answer before the body", "POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello", xdsresource.HTTPConnectionManager{}, 200, true},
		{"an answer to an empty body", "POST /empty HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", xdsresource.HTTPConnectionManager{}, 200, false},
		{"a body that is none", "POST /body HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nx\r\n", xdsresource.HTTPConnectionManager{}, 400, true},
		{"a header of ours named in Connection", "GET / HTTP/1.1\r\nhost: a\r\nconnection: close, X-Forwarded-Client-Cert\r\n\r\n", xdsresource.HTTPConnectionManager{ForwardClientCert: xdsresource.XFCCSanitizeSet}, 400, true},
		{"a method in small letters", "get / HTTP/1.1\r\nhost: a\r\n\r\n", xdsresource.HTTPConnectionManager{}, 400, true},
		{"a filter that panics", "GET /panic HTTP/1.1\r\nhost: a\r\n\r\n", xdsresource.HTTPConnectionManager{}, 500, true},
	}
	if len(cases) != 19 {
		t.Errorf("%d cases, want 19", len(cases))
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			resp, body := ask(t, &c.spec, nil, nil, c.raw)
			if resp.StatusCode != c.status || resp.Close != c.closes {
				t.Errorf("got %d, close %t, %q", resp.StatusCode, resp.Close, body)
			}
		})
	}
}

// The preface is recognised however it is cut, and what is not HTTP/2 loses no
// byte.
func TestTheCodecIsFoundFromTheFirstBytes(t *testing.T) {
	a := netip.MustParseAddrPort("127.0.0.1:1")
	for in, want := range map[string]bool{preface + "rest": true, "PRI x": false, "GET / HTTP/1.1\r\n": false} {
		near, far := netio.Pipe(a, a)
		type found struct {
			c  netio.Conn
			h2 bool
		}
		got := make(chan found, 1)
		sniff(far, 0, sniffedBy(func(first []byte, h2 bool) { got <- found{netio.WithPrefix(far, first), h2} }))
		for i := range len(in) {
			if _, err := near.Write([]byte{in[i]}); err != nil {
				t.Fatal(err)
			}
		}
		f := <-got
		b := make([]byte, 0, len(in))
		for len(b) < len(in) {
			p := make([]byte, 64)
			n, err := f.c.Read(p)
			if err != nil {
				t.Fatal(err)
			}
			b = append(b, p[:n]...)
		}
		if f.h2 != want || string(b) != in {
			t.Errorf("%q: h2 %t, read %q", in, f.h2, b)
		}
		_ = near.Close()
		_ = far.Close()
	}
}

// sniffedBy takes no failure.
type sniffedBy func(first []byte, http2 bool)

func (f sniffedBy) serve(_ netio.Conn, first []byte, http2 bool) { f(first, http2) }
func (f sniffedBy) fail(netio.Conn)                              { panic("failed") }

var _ transport.Handler = (*conn)(nil)

func TestLostClientsAndTooLargeBodiesAreCounted(t *testing.T) {
	reg := &stats.Registry{}
	held := make(chan struct{})
	m, err := New(Config{Spec: &xdsresource.HTTPConnectionManager{}, Routes: &Routes{}, Stats: reg.Scope("h_"), DefaultChain: []filters.HTTPFilter{counted{held}}})
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddrPort("127.0.0.1:1")
	serve := func(raw string, then func(near netio.Conn)) {
		t.Helper()
		near, far := netio.Pipe(a, a)
		done := make(chan struct{})
		go m.Serve(&filters.Connection{Conn: far, Info: &streaminfo.Info{Conn: &streaminfo.Conn{Local: a, Remote: a, DirectRemote: a}}}, func() { close(done) })
		if _, err := near.Write([]byte(raw)); err != nil {
			t.Fatal(err)
		}
		then(near)
		_ = near.Close()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("the connection does not end")
		}
	}
	serve("GET /large HTTP/1.1\r\nhost: a\r\n\r\n", func(near netio.Conn) {
		if resp, err := http.ReadResponse(bufio.NewReader(near), nil); err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%v, %v", resp, err)
		}
	})
	serve("GET /held HTTP/1.1\r\nhost: a\r\n\r\n", func(netio.Conn) { <-held })
	var b strings.Builder
	if err := reg.WritePrometheus(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"h_downstream_rq_too_large 1\n", "h_downstream_cx_destroy_remote_active_rq 1\n", "h_downstream_rq_rx_reset 1\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in\n%s", want, b.String())
		}
	}
}

// counted answers 413, or waits for the client to go.
type counted struct{ held chan struct{} }

func (f counted) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	if s.Request.Get(message.Path) == "/large" {
		return s.LocalReply(http.StatusRequestEntityTooLarge, "", "request_payload_too_large", 0), nil
	}
	f.held <- struct{}{}
	<-s.Context().Done()
	return nil, s.Cause()
}
