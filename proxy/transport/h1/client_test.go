package h1

import (
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/conntest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// request makes a head of "name=value" fields.
func request(fields string) *message.Header {
	var h message.Header
	for f := range strings.FieldsSeq(fields) {
		n, v, _ := strings.Cut(f, "=")
		h.Add(n, v)
	}
	return &h
}

const simple = ":method=GET :scheme=http :authority=a :path=/"

// origin reads requests on c, one for each script entry, and sends it.
func origin(t *testing.T, c netio.Conn, script ...string) (seen chan string) {
	t.Helper()
	seen = make(chan string, len(script))
	go func() {
		defer close(seen)
		buf := make([]byte, 64<<10)
		for _, s := range script {
			n, err := c.Read(buf)
			if err != nil {
				seen <- "!" + err.Error()
				return
			}
			seen <- string(buf[:n])
			if _, err := c.Write([]byte(s)); err != nil {
				return
			}
		}
	}()
	return seen
}

func open(t *testing.T, cl transport.ClientConn) transport.ClientStream {
	t.Helper()
	st, err := cl.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestRequestsOnTheWire(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	for _, c := range []struct {
		name, fields string
		chunks       []string
		want         string
	}{
		{"a GET", simple + " x=y", nil, "GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n\r\n"},
		{"a POST without body", ":method=POST :scheme=http :authority=a :path=/", nil, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"},
		{"a DELETE without body", ":method=DELETE :scheme=http :authority=a :path=/", nil, "DELETE / HTTP/1.1\r\nhost: a\r\n\r\n"},
		{"a body by length", ":method=POST :authority=a :path=/ content-length=3", []string{"abc"}, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc"},
		{"a chunked body", ":method=POST :authority=a :path=/", []string{"abc"}, "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"},
		{"hop-by-hop fields are ours", simple + " connection=close keep-alive=5 transfer-encoding=gzip proxy-connection=x host=b te=trailers http2-settings=x", nil, "GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n"},
		{"OPTIONS without body", ":method=OPTIONS :authority=a :path=/", nil, "OPTIONS / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"},
		{"an upgrade as it came", simple + " upgrade=websocket connection=Upgrade", nil, "GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"},
		{"an upgrade that Connection does not name", simple + " upgrade=websocket connection=x", nil, "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"},
		{"an upgrade", simple + " upgrade=websocket connection=upgrade", nil, "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"},
		{"an extended CONNECT", ":method=CONNECT :protocol=websocket :scheme=http :authority=a :path=/ws", nil, "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"},
		{"CONNECT", ":method=CONNECT :authority=b:80", nil, "CONNECT b:80 HTTP/1.1\r\nhost: b:80\r\n\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cc, sc := conntest.Pipes(t)
			seen := origin(t, sc, ok)
			cl := NewClient(cc, &transport.ClientConfig{})
			st := open(t, cl)
			if err := st.WriteHeaders(request(c.fields), c.chunks == nil); err != nil {
				t.Fatal(err)
			}
			for i, p := range c.chunks {
				if err := st.WriteData([]byte(p), i == len(c.chunks)-1); err != nil {
					t.Fatal(err)
				}
			}
			var h message.Header
			if status, _, err := st.ReadHeaders(&h); status != 200 || err != nil {
				t.Error(status, err)
			}
			if got := <-seen; got != c.want {
				t.Errorf("\n got %q\nwant %q", got, c.want)
			}
			if got, want := st.BytesOut(), uint64(len(c.want)); got != want {
				t.Errorf("sent %d, want %d", got, want)
			}
			if st.BytesIn() != uint64(len(ok)) {
				t.Errorf("received %d", st.BytesIn())
			}
			st.Release()
			cl.Close(nil)
			_ = sc.Close()
		})
	}
}

func TestRequestsThatCannotBeWrittenAreRefused(t *testing.T) {
	for name, h := range map[string][]string{
		"a space in the path":            {":method", "GET", ":authority", "a", ":path", "/x?a b"},
		"a request line in the path":     {":method", "GET", ":authority", "a", ":path", "/x HTTP/1.1\r\nX: y"},
		"a byte above 0x7f in the path":  {":method", "GET", ":authority", "a", ":path", "/\xc3"},
		"no path":                        {":method", "GET", ":authority", "a"},
		"a space in the method":          {":method", "G T", ":authority", "a", ":path", "/"},
		"no method":                      {":authority", "a", ":path", "/"},
		"a line end in the authority":    {":method", "GET", ":authority", "a\r\nb: c", ":path", "/"},
		"no authority":                   {":method", "GET", ":path", "/"},
		"a line end in a value":          {":method", "GET", ":authority", "a", ":path", "/", "x", "b\r\nTransfer-Encoding: chunked"},
		"a line end in a name":           {":method", "GET", ":authority", "a", ":path", "/", "x: y\r\nz", "b"},
		"a space in a name":              {":method", "GET", ":authority", "a", ":path", "/", "x y", "b"},
		"a NUL in a value":               {":method", "GET", ":authority", "a", ":path", "/", "x", "\x00"},
		"two lengths":                    {":method", "GET", ":authority", "a", ":path", "/", "content-length", "1", "content-length", "1"},
		"a signed length":                {":method", "GET", ":authority", "a", ":path", "/", "content-length", "+1"},
		"a length without a body":        {":method", "GET", ":authority", "a", ":path", "/", "content-length", "1"},
		"a line end in the upgrade":      {":method", "GET", ":authority", "a", ":path", "/", "upgrade", "x\r\ny: z"},
		"a line end in the protocol":     {":method", "CONNECT", ":authority", "a", ":path", "/", ":protocol", "x\r\ny: z"},
		"a CONNECT target with a space":  {":method", "CONNECT", ":authority", "a:1 HTTP/1.1"},
		"an extended CONNECT, path-less": {":method", "CONNECT", ":authority", "a", ":protocol", "x"},
	} {
		t.Run(name, func(t *testing.T) {
			cc, sc := conntest.Pipes(t)
			cl := NewClient(cc, &transport.ClientConfig{})
			st := open(t, cl)
			var hd message.Header
			for i := 0; i < len(h); i += 2 {
				hd.Add(h[i], h[i+1])
			}
			if err := st.WriteHeaders(&hd, true); transport.ReasonOf(err) != transport.ProtocolError {
				t.Errorf("got %v", err)
			}
			if _, _, err := st.ReadHeaders(&hd); transport.ReasonOf(err) != transport.ProtocolError {
				t.Errorf("read: %v", err)
			}
			st.Release()
			if b, _ := io.ReadAll(sc); len(b) > 0 {
				t.Errorf("sent %q", b)
			}
			if cl.Available() != 0 {
				t.Error("reused")
			}
			_ = sc.Close()
		})
	}
}

// exchange runs one GET against an origin that sends answer, and returns what
// the client sees, and whether the connection can be used again.
// The origin ends its direction when nothing else is left to happen.
func exchange(t *testing.T, fields, answer string, cfg *transport.ClientConfig) (status int, body string, trailers *message.Header, err error, reusable bool) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { status, body, trailers, err, reusable = exchanged(t, fields, answer, cfg) })
	return status, body, trailers, err, reusable
}

func exchanged(t *testing.T, fields, answer string, cfg *transport.ClientConfig) (status int, body string, trailers *message.Header, err error, reusable bool) {
	t.Helper()
	cc, sc := conntest.Pipes(t)
	origin(t, sc, answer)
	cl := NewClient(cc, cfg)
	st := open(t, cl)
	var h message.Header
	if err := st.WriteHeaders(request(fields), true); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, func() { _ = sc.CloseWrite() })
	for status < 200 && err == nil {
		status, _, err = st.ReadHeaders(&h)
	}
	var b []byte
	if err == nil {
		b, err = io.ReadAll(message.NewReader(st.Body()))
		trailers = st.Body().Trailers()
	}
	st.Release()
	reusable = cl.Available() == 1
	cl.Close(nil)
	_ = sc.Close()
	return status, string(b), trailers, err, reusable
}

func TestResponsesAreReadToTheirEnd(t *testing.T) {
	for _, c := range []struct {
		name, fields, in, body string
		status                 int
		reusable               bool
	}{
		{"by length", simple, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello", 200, true},
		{"by chunks", simple, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", "hello!", 200, true},
		{"by close", simple, "HTTP/1.1 200 OK\r\n\r\nhello", "hello", 200, false},
		{"1xx before", simple, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 E\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", "x", 200, true},
		{"HEAD", ":method=HEAD :authority=a :path=/", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "", 200, true},
		{"HEAD with a body is not reused", ":method=HEAD :authority=a :path=/", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "", 200, false},
		{"204", simple, "HTTP/1.1 204 No\r\n\r\n", "", 204, true},
		{"204 with a body is not reused", simple, "HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nhello", "", 204, false},
		{"304 with a length", simple, "HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\n", "", 304, true},
		{"a second response is not the next client's", simple, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", "x", 200, false},
		{"bytes after the response", simple, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxy", "x", 200, false},
		{"close", simple, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx", "x", 200, false},
		{"HTTP/1.0", simple, "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", "x", 200, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, body, _, err, reusable := exchange(t, c.fields, c.in, &transport.ClientConfig{})
			if status != c.status || body != c.body || err != nil || reusable != c.reusable {
				t.Errorf("got %d %q %v, reusable %t", status, body, err, reusable)
			}
		})
	}
}

func TestAResponseSplitAtEveryByteIsTheSame(t *testing.T) {
	const in = "HTTP/1.1 103 Early\r\nA: 1\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\nGrpc-Status: 0\r\n\r\n"
	for i := 1; i < len(in); i++ {
		cc, sc := conntest.Pipes(t)
		cl := NewClient(cc, &transport.ClientConfig{EnableTrailers: true})
		st := open(t, cl)
		_ = st.WriteHeaders(request(simple), true)
		go func() {
			_, _ = sc.Read(make([]byte, 1000))
			_, _ = sc.Write([]byte(in[:i]))
			for r, _ := cc.(netio.Prober).Probe(); r; r, _ = cc.(netio.Prober).Probe() {
				time.Sleep(10 * time.Microsecond)
			}
			_, _ = sc.Write([]byte(in[i:]))
		}()
		var h message.Header
		if status, _, err := st.ReadHeaders(&h); status != 103 || err != nil {
			t.Fatalf("at %d: %d %v", i, status, err)
		}
		if status, end, err := st.ReadHeaders(&h); status != 200 || end || err != nil {
			t.Fatalf("at %d: %d %v", i, status, err)
		}
		b, err := io.ReadAll(message.NewReader(st.Body()))
		if tr := st.Body().Trailers(); string(b) != "abcdef" || err != nil || tr == nil || tr.Get("grpc-status") != "0" {
			t.Fatalf("at %d: %q %v %v", i, b, err, tr)
		}
		st.Release()
		if cl.Available() != 1 {
			t.Fatalf("at %d: not reusable", i)
		}
		cl.Close(nil)
	}
}

func TestAResponseThatIsCutOffIsAProtocolError(t *testing.T) {
	for _, in := range []string{
		"HTTP/1.1 200 OK\r\nX: y\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
	} {
		if _, _, _, err, reusable := exchange(t, simple, in, &transport.ClientConfig{}); transport.ReasonOf(err) != transport.ProtocolError || reusable {
			t.Errorf("%q: got %v, reusable %t", in, err, reusable)
		}
	}
	if _, _, _, err, _ := exchange(t, simple, "", &transport.ClientConfig{}); transport.ReasonOf(err) != transport.ConnectionTermination {
		t.Errorf("no answer at all: got %v", err)
	}
}

func TestInformationalHeadsAreBounded(t *testing.T) {
	_, _, _, err, reusable := exchange(t, simple, strings.Repeat("HTTP/1.1 103 E\r\n\r\n", maxInformational+1)+"HTTP/1.1 200 OK\r\n\r\n", &transport.ClientConfig{})
	if transport.ReasonOf(err) != transport.ProtocolError || reusable {
		t.Errorf("got %v", err)
	}
}

func TestTooLargeAResponseHeadIsRefused(t *testing.T) {
	for _, in := range []string{"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 61<<10) + "\r\n\r\n", "HTTP/1.1 200 " + strings.Repeat("x", 61<<10)} {
		if _, _, _, err, _ := exchange(t, simple, in, &transport.ClientConfig{}); transport.ReasonOf(err) != transport.ProtocolError {
			t.Errorf("got %v", err)
		}
	}
}

func TestAResponseBeforeTheRequestIsComplete(t *testing.T) {
	for name, conns := range kinds {
		t.Run(name, func(t *testing.T) {
			cc, sc := conns(t)
			origin(t, sc, "HTTP/1.1 413 Large\r\nContent-Length: 1\r\n\r\nx")
			cl := NewClient(cc, &transport.ClientConfig{})
			st := open(t, cl)
			_ = st.WriteHeaders(request(":method=POST :authority=a :path=/"), false)
			if err := st.WriteData([]byte("part"), false); err != nil {
				t.Fatal(err)
			}
			var h message.Header
			if status, _, err := st.ReadHeaders(&h); status != 413 || err != nil {
				t.Fatal(status, err)
			}
			if b, err := io.ReadAll(message.NewReader(st.Body())); string(b) != "x" || err != nil {
				t.Errorf("%q %v", b, err)
			}
			st.Release()
			if cl.Available() != 0 {
				t.Error("reused although the request is not complete")
			}
			_ = sc.Close()
		})
	}
}

func TestReadingAndWritingAtTheSameTime(t *testing.T) {
	for name, conns := range kinds {
		t.Run(name, func(t *testing.T) {
			cc, sc := conns(t)
			done := start(sc, &handler{serve: func(s transport.ServerStream) {
				var h message.Header
				h.Add(message.Status, "200")
				_ = s.WriteHeaders(&h, false)
				_ = s.Flush()
				for {
					p, last, err := s.Body().Next()
					if err != nil {
						t.Error(err)
						s.Reset(transport.LocalReset)
						return
					}
					if err := s.WriteData(p, last); err != nil || last {
						return
					}
				}
			}}, &transport.ServerConfig{})
			cl := NewClient(cc, &transport.ClientConfig{})
			st := open(t, cl)
			_ = st.WriteHeaders(request(":method=POST :authority=a :path=/"), false)
			_ = st.Flush()
			const n = 300
			part := strings.Repeat("0123456789", 1000)
			go func() {
				for i := range n {
					if err := st.WriteData([]byte(part), i == n-1); err != nil {
						t.Error(err)
					}
				}
			}()
			var h message.Header
			if _, _, err := st.ReadHeaders(&h); err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(message.NewReader(st.Body()))
			if err != nil || string(b) != strings.Repeat(part, n) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			st.Release()
			cl.Close(nil)
			wait(t, done)
		})
	}
}

func TestClientTunnelsStartWithBufferedBytes(t *testing.T) {
	for fields, answer := range map[string]string{
		simple + " upgrade=foo":          "HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\nearly",
		":method=CONNECT :authority=b:1": "HTTP/1.1 200 OK\r\n\r\nearly",
	} {
		cc, sc := conntest.Sockets(t)
		origin(t, sc, answer)
		cl := NewClient(cc, &transport.ClientConfig{})
		st := open(t, cl)
		_ = st.WriteHeaders(request(fields), false)
		_ = st.Flush()
		var h message.Header
		if _, end, err := st.ReadHeaders(&h); end || err != nil {
			t.Fatal(end, err)
		}
		tn := st.Tunnel()
		st.Release()
		b := make([]byte, 5)
		if _, err := io.ReadFull(tn, b); string(b) != "early" || err != nil {
			t.Errorf("%q %v", b, err)
		}
		select {
		case <-cl.Done():
			t.Error("ended before the tunnel")
		default:
		}
		_ = tn.Close()
		<-cl.Done()
		_ = sc.Close()
	}
}

// The gate: a keep-alive exchange allocates nothing on either side.
func TestExchangesDoNotAllocate(t *testing.T) {
	if raced {
		t.Skip("the race detector allocates")
	}
	for name, limit := range map[string]float64{"socket": 0.5, "pipe": 3} {
		t.Run(name, func(t *testing.T) {
			var sh, rh message.Header
			body := []byte(strings.Repeat("x", 1024))
			cc, sc := kinds[name](t)
			done := start(sc, &handler{serve: func(s transport.ServerStream) {
				s.ReadHeaders(&sh)
				rh.Reset()
				rh.Add(message.Status, "200")
				rh.Add("content-length", "1024")
				if s.WriteHeaders(&rh, false) != nil || s.WriteData(body, true) != nil {
					t.Error("write")
				}
			}}, &transport.ServerConfig{})
			cl := NewClient(cc, &transport.ClientConfig{})
			q := request(simple + " user-agent=x accept=*/*")
			var h message.Header
			got := testing.AllocsPerRun(500, func() {
				st := open(t, cl)
				if err := st.WriteHeaders(q, true); err != nil {
					t.Fatal(err)
				}
				if _, _, err := st.ReadHeaders(&h); err != nil {
					t.Fatal(err)
				}
				b := st.Body()
				for last := false; !last; {
					var err error
					if _, last, err = b.Next(); err != nil {
						t.Fatal(err)
					}
				}
				b.Close()
				st.Release()
			})
			if got > limit {
				t.Errorf("%v allocations", got)
			}
			cl.Close(nil)
			wait(t, done)
		})
	}
}
