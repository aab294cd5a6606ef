package h1

import (
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/conntest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// reply answers with the given fields and chunks; end is said with the last.
func reply(s transport.ServerStream, fields string, chunks ...string) error {
	var h message.Header
	for f := range strings.FieldsSeq(fields) {
		n, v, _ := strings.Cut(f, "=")
		h.Add(n, v)
	}
	if err := s.WriteHeaders(&h, len(chunks) == 0); err != nil {
		return err
	}
	for i, c := range chunks {
		if err := s.WriteData([]byte(c), i == len(chunks)-1); err != nil {
			return err
		}
	}
	return nil
}

// answers returns a handler that reads the body and replies.
func answers(fields string, chunks ...string) *handler {
	return &handler{serve: func(s transport.ServerStream) {
		var h message.Header
		s.ReadHeaders(&h)
		_, _ = io.Copy(io.Discard, message.NewReader(s.Body()))
		_ = reply(s, fields, chunks...)
	}}
}

var answers413 = &handler{serve: func(s transport.ServerStream) { _ = reply(s, ":status=413") }}

func TestResponsesOnTheWire(t *testing.T) {
	const ask = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, c := range []struct {
		name, in, fields string
		chunks           []string
		want             string
	}{
		{"no body", ask, ":status=200 x=y", nil, "HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 0\r\n\r\n"},
		{"a body by length", ask, ":status=200 content-length=5", []string{"hel", "lo"}, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"},
		{"a chunked body", ask, ":status=200", []string{"hello", " world"}, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"},
		{"an end without data", ask, ":status=200", []string{"hello", ""}, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"},
		{"an empty chunk in between", ask, ":status=200", []string{"a", "", "b"}, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n"},
		{"hop-by-hop fields are ours", ask, ":status=200 connection=x keep-alive=5 transfer-encoding=gzip proxy-connection=x upgrade=y content-length=1", []string{"z"}, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nz"},
		{"204", ask, ":status=204 content-length=0", nil, "HTTP/1.1 204 No Content\r\n\r\n"},
		{"304 keeps its length", ask, ":status=304 content-length=7", nil, "HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n"},
		{"data with 204 is dropped", ask, ":status=204", []string{"x"}, "HTTP/1.1 204 No Content\r\n\r\n"},
		{"HEAD keeps the length", "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", ":status=200 content-length=7", nil, "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n"},
		{"HEAD without length", "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", ":status=200", []string{"x"}, "HTTP/1.1 200 OK\r\n\r\n"},
		{"the client closes", "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", ":status=200", nil, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"},
		{"HTTP/1.0", "GET / HTTP/1.0\r\nHost: a\r\n\r\n", ":status=200", []string{"a", "b"}, "HTTP/1.0 200 OK\r\nconnection: close\r\n\r\nab"},
		{"HTTP/1.0 that goes on", "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", ":status=200 content-length=2", []string{"ab"}, "HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nab"},
		{"HTTP/1.0 that can't go on", "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", ":status=200", []string{"ab"}, "HTTP/1.0 200 OK\r\nconnection: close\r\n\r\nab"},
		{"an unknown status", ask, ":status=599", nil, "HTTP/1.1 599 Unknown\r\ncontent-length: 0\r\n\r\n"},
		{"no host", "GET / HTTP/1.1\r\n\r\n", ":status=400", nil, "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := raw(t, c.in, answers(c.fields, c.chunks...), &transport.ServerConfig{AcceptHTTP10: true})
			if got != c.want {
				t.Errorf("\n got %q\nwant %q", got, c.want)
			}
		})
	}
}

func TestWhatCannotBeWrittenIsRefusedAndResets(t *testing.T) {
	add := func(kv ...string) func(s transport.ServerStream) error {
		return func(s transport.ServerStream) error {
			var h message.Header
			for i := 0; i < len(kv); i += 2 {
				h.Add(kv[i], kv[i+1])
			}
			return s.WriteHeaders(&h, true)
		}
	}
	for name, f := range map[string]func(s transport.ServerStream) error{
		"a line end in a value":     add(":status", "200", "x", "a\r\nb: c"),
		"a NUL in a value":          add(":status", "200", "x", "a\x00"),
		"a line end in a name":      add(":status", "200", "x\r\ny", "a"),
		"a colon in a name":         add(":status", "200", "x:", "a"),
		"an upper-case name":        add(":status", "200", "X", "a"),
		"an empty name":             add(":status", "200", "", "a"),
		"no status":                 add("x", "a"),
		"a bad status":              add(":status", "2000"),
		"a bad length":              add(":status", "200", "content-length", "5x"),
		"two lengths":               add(":status", "200", "content-length", "5", "content-length", "6"),
		"a length without its body": add(":status", "200", "content-length", "5"),
		"101 unasked":               add(":status", "101", "upgrade", "x"),
		"1xx as the final head":     add(":status", "103"),
		"too long a body":           func(s transport.ServerStream) error { return reply(s, ":status=200 content-length=2", "abc") },
		"too short a body":          func(s transport.ServerStream) error { return reply(s, ":status=200 content-length=4", "abc") },
		"nothing":                   func(transport.ServerStream) error { return io.EOF },
		"no end": func(s transport.ServerStream) error {
			var h message.Header
			h.Add(":status", "200")
			if s.WriteHeaders(&h, false) != nil || s.WriteData([]byte("part"), false) != nil {
				t.Error("want no error yet")
			}
			return io.EOF
		},
		"a reset": func(s transport.ServerStream) error { s.Reset(transport.LocalReset); return io.EOF },
		"data before the head": func(s transport.ServerStream) error {
			return s.WriteData([]byte("x"), true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			cc, sc := conntest.Pipes(t)
			done := start(sc, &handler{serve: func(s transport.ServerStream) {
				if f(s) == nil {
					t.Error("want an error")
				}
			}}, &transport.ServerConfig{})
			_, _ = cc.Write([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
			wait(t, done)
			b, err := io.ReadAll(cc)
			if !errors.Is(err, netio.ErrReset) || strings.Contains(string(b), "b: c") {
				t.Errorf("the client sees %q, %v", b, err)
			}
		})
	}
}

func TestPipelinedRequestsAreAnsweredInOrderUntilABadOne(t *testing.T) {
	for name, conns := range kinds {
		t.Run(name, func(t *testing.T) {
			var in strings.Builder
			for i := range 10 {
				if i == 2 {
					in.WriteString("X\r\n\r\n")
				}
				in.WriteString("GET /" + string(rune('0'+i)) + " HTTP/1.1\r\nHost: a\r\n\r\n")
			}
			cc, sc := conns(t)
			h := &handler{serve: echo}
			done := start(sc, h, &transport.ServerConfig{})
			_, _ = cc.Write([]byte(in.String()))
			_ = cc.CloseWrite()
			b, err := io.ReadAll(cc)
			if err != nil {
				t.Error(err)
			}
			wait(t, done)
			_ = cc.Close()
			s := string(b)
			if strings.Count(s, "HTTP/1.1 200") != 2 || strings.Count(s, "HTTP/1.1 400") != 1 || !strings.Contains(s, "GET a/0 ") ||
				strings.Index(s, "GET a/0 ") > strings.Index(s, "GET a/1 ") || !strings.HasSuffix(s, "connection: close\r\n\r\nBad Request") {
				t.Errorf("got %q", s)
			}
			if len(h.errs) != 1 || h.errs[0] != "400 http1.codec_error" {
				t.Errorf("told %q", h.errs)
			}
		})
	}
}

func TestARequestSplitAtEveryByteIsTheSame(t *testing.T) {
	const in = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;e=1\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n" +
		"POST /y HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nxyz"
	want := raw(t, in, &handler{serve: echo}, &transport.ServerConfig{EnableTrailers: true})
	if strings.Count(want, "200 OK") != 2 || !strings.Contains(want, "POST a/x abcde") {
		t.Fatalf("got %q", want)
	}
	for i := 1; i < len(in); i++ {
		cc, sc := conntest.Pipes(t)
		done := start(sc, &handler{serve: echo}, &transport.ServerConfig{EnableTrailers: true})
		_, _ = cc.Write([]byte(in[:i]))
		for r, _ := sc.(netio.Prober).Probe(); r; r, _ = sc.(netio.Prober).Probe() {
			time.Sleep(10 * time.Microsecond)
		}
		_, _ = cc.Write([]byte(in[i:]))
		_ = cc.CloseWrite()
		got, err := io.ReadAll(cc)
		wait(t, done)
		g := strings.ReplaceAll(string(got), "connection: close\r\n", "")
		if err != nil || g != want {
			t.Fatalf("split at %d: got %q, %v", i, got, err)
		}
	}
}

func TestARequestByteByByte(t *testing.T) {
	for name, conns := range kinds {
		t.Run(name, func(t *testing.T) {
			cc, sc := conns(t)
			done := start(sc, &handler{serve: echo}, &transport.ServerConfig{})
			for _, b := range []byte("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: 1\r\n\r\n") {
				_, _ = cc.Write([]byte{b})
			}
			buf := make([]byte, 4096)
			n, err := cc.Read(buf)
			if err != nil || !strings.Contains(string(buf[:n]), "200 OK") {
				t.Errorf("got %q, %v", buf[:n], err)
			}
			_ = cc.Close()
			wait(t, done)
		})
	}
}

func TestBadBodiesEndTheConnectionWithoutAnother(t *testing.T) {
	next := "GET /second HTTP/1.1\r\nHost: a\r\n\r\n"
	for name, chunks := range map[string]string{
		"a bare line feed after the size": "3\nabc\r\n0\r\n\r\n",
		"a prefix":                        "0x3\r\nabc\r\n0\r\n\r\n",
		"a sign":                          "+3\r\nabc\r\n0\r\n\r\n",
		"a space after the size":          "3 \r\nabc\r\n0\r\n\r\n",
		"a space before the size":         " 3\r\nabc\r\n0\r\n\r\n",
		"many digits":                     "000000000000000000000000000000003\r\nabc\r\n0\r\n\r\n",
		"16 digits":                       "1000000000000003\r\nabc\r\n0\r\n\r\n",
		"a line feed in an extension":     "3;a\nb\r\nabc\r\n0\r\n\r\n",
		"a carriage return in it":         "3;a\rb\r\nabc\r\n0\r\n\r\n",
		"a bad size end":                  "3\rX\nabc\r\n0\r\n\r\n",
		"no line end behind the data":     "3\r\nabc0\r\n\r\n",
		"a bare line feed behind it":      "3\r\nabc\n0\r\n\r\n",
		"a line end before the last":      "3\r\nabc\r\n\r\n0\r\n\r\n",
		"a negative zero":                 "3\r\nabc\r\n-0\r\n\r\n",
		"a full-width digit":              "\xef\xbc\x93\r\nabc\r\n0\r\n\r\n",
		"no size":                         "\r\nabc\r\n0\r\n\r\n",
		"an extension without a size":     ";a\r\nabc\r\n0\r\n\r\n",
		"a folded trailer":                "3\r\nabc\r\n0\r\nX: 1\r\n 2\r\n\r\n",
		"a trailer without colon":         "3\r\nabc\r\n0\r\nX\r\n\r\n",
		"a bare line feed in trailers":    "3\r\nabc\r\n0\r\nX: 1\nY: 2\r\n\r\n",
		"a bare line feed at the end":     "3\r\nabc\r\n0\r\n\n",
		"a space in the end":              "3\r\nabc\r\n0\r\n \r\n",
		"too many trailers":               "3\r\nabc\r\n0\r\n" + strings.Repeat("X: 1\r\n", 101) + "\r\n",
		"too large an extension":          "3;" + strings.Repeat("x", 17<<10) + "\r\nabc\r\n0\r\n\r\n",
		"too large a trailer":             "3\r\nabc\r\n0\r\nX: " + strings.Repeat("x", 61<<10) + "\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			var served atomic.Int32
			cc, sc := conntest.Sockets(t)
			done := start(sc, &handler{serve: func(s transport.ServerStream) {
				served.Add(1)
				if _, err := io.ReadAll(message.NewReader(s.Body())); transport.ReasonOf(err) != transport.ProtocolError {
					t.Errorf("the body ends with %v", err)
				}
				_ = reply(s, ":status=400")
			}}, &transport.ServerConfig{EnableTrailers: true})
			go func() {
				_, _ = cc.Write([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + next))
				_ = cc.CloseWrite()
			}()
			b, _ := io.ReadAll(cc)
			_ = cc.Close()
			wait(t, done)
			if served.Load() != 1 || strings.Count(string(b), "HTTP/1.1") != 1 || !strings.Contains(string(b), "connection: close") {
				t.Errorf("served %d, got %q", served.Load(), b)
			}
		})
	}
}

func TestTrailersArePassedOnOnlyIfEnabledAndHarmless(t *testing.T) {
	const in = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Good: 1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: b\r\nAuthorization: x\r\nX-Forwarded-For: 1.2.3.4\r\nX_Forwarded-Client_Cert: Hash=1\r\nX-Also: 2\r\n\r\n"
	for _, on := range []bool{true, false} {
		var names []string
		out := raw(t, in, &handler{serve: func(s transport.ServerStream) {
			_, _ = io.ReadAll(message.NewReader(s.Body()))
			if tr := s.Body().Trailers(); tr != nil {
				for i := range tr.Len() {
					names = append(names, tr.At(i).Name+"="+tr.At(i).Value)
				}
			}
			var h, tr message.Header
			h.Add(":status", "200")
			tr.Add("grpc-status", "0")
			tr.Add("content-length", "5")
			_ = s.WriteHeaders(&h, false)
			_ = s.WriteData([]byte("x"), false)
			_ = s.WriteTrailers(&tr)
		}}, &transport.ServerConfig{EnableTrailers: on})
		want, wire := "", "1\r\nx\r\n0\r\n\r\n"
		if on {
			want, wire = "x-good=1 x-also=2", "1\r\nx\r\n0\r\ngrpc-status: 0\r\n\r\n"
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("enabled %t: got %q, want %q", on, got, want)
		}
		if !strings.HasSuffix(out, wire) {
			t.Errorf("enabled %t: wire %q", on, out)
		}
	}
}

func TestEmptyLinesBeforeARequestAreSkipped(t *testing.T) {
	const get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	if out := raw(t, "\r\n\r\n"+get+"\r\n\r\n\r\n"+get+"\r\n", answers(":status=204"), &transport.ServerConfig{}); strings.Count(out, "HTTP/1.1 204") != 2 {
		t.Errorf("got %q", out)
	}
	for _, bad := range []string{"\n" + get, "\r\n\n" + get, "\r\r\n" + get} {
		if out := raw(t, bad, answers(":status=204"), &transport.ServerConfig{}); !strings.HasPrefix(out, "HTTP/1.1 400") {
			t.Errorf("%q: got %q", bad, out)
		}
	}
}

func TestAnotherVersionIsAnswered426(t *testing.T) {
	out := raw(t, "GET / HTTP/1.2\r\nHost: a\r\n\r\n", answers(":status=204"), &transport.ServerConfig{Case: transport.ProperCase})
	if want := "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 16\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nUpgrade Required"; out != want {
		t.Errorf("got %q", out)
	}
}

// The gate: serving a keep-alive request allocates nothing.
func TestServingDoesNotAllocate(t *testing.T) {
	if raced {
		t.Skip("the race detector allocates")
	}
	var h, r message.Header
	body := []byte(strings.Repeat("x", 1024))
	serve := &handler{serve: func(s transport.ServerStream) {
		s.ReadHeaders(&h)
		s.OnReset(func(error) {})
		r.Reset()
		r.Add(message.Status, "200")
		r.Add("content-length", "1024")
		if s.WriteHeaders(&r, false) != nil || s.WriteData(body, true) != nil {
			t.Error("write")
		}
	}}
	cc, sc := conntest.Sockets(t)
	done := start(sc, serve, &transport.ServerConfig{})
	in := []byte("GET /b/1024 HTTP/1.1\r\nHost: backend.default.svc.cluster.local\r\nUser-Agent: x/1.0\r\nAccept: */*\r\n\r\n")
	buf := make([]byte, 4096)
	got := testing.AllocsPerRun(500, func() {
		if _, err := cc.Write(in); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < 1024; {
			k, err := cc.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			n += k
		}
	})
	if got > 0.5 {
		t.Errorf("%v allocations", got)
	}
	_ = cc.Close()
	wait(t, done)
}
