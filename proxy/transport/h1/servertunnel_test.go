package h1

import (
	"io"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/conntest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

func TestExpectIsAnsweredAtOnce(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
	read := func(c netio.Conn) string {
		b := make([]byte, 1000)
		n, _ := c.Read(b)
		return string(b[:n])
	}
	cc, sc := conntest.Sockets(t)
	done := start(sc, &handler{serve: echo}, &transport.ServerConfig{})
	_, _ = cc.Write([]byte(head))
	if got := read(cc); got != "HTTP/1.1 100 Continue\r\n\r\n" {
		t.Errorf("got %q", got)
	}
	_, _ = cc.Write([]byte("abc"))
	if got := read(cc); !strings.Contains(got, "POST a/ abc") || strings.Contains(got, "close") {
		t.Errorf("got %q", got)
	}
	_ = cc.CloseWrite()
	wait(t, done)

	// As Envoy, also for a client that does not wait,
	out := raw(t, head+"abc", &handler{serve: echo}, &transport.ServerConfig{})
	if !strings.HasPrefix(out, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200") {
		t.Errorf("got %q", out)
	}
	// and before a refusal without the body, which ends the connection.
	out = raw(t, head, answers413, &transport.ServerConfig{})
	if !strings.HasPrefix(out, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 413") || !strings.Contains(out, "connection: close") {
		t.Errorf("got %q", out)
	}

	// Passed through, 100 is the handler's.
	cc, sc = conntest.Sockets(t)
	done = start(sc, &handler{serve: func(s transport.ServerStream) {
		var h, i message.Header
		s.ReadHeaders(&h)
		if h.Get("expect") != "100-continue" {
			t.Error("expect is gone")
		}
		i.Add(":status", "100")
		_ = s.WriteInformational(&i)
		_, _ = io.ReadAll(message.NewReader(s.Body()))
		i.Reset()
		i.Add(":status", "103")
		i.Add("link", "x")
		_ = s.WriteInformational(&i)
		_ = reply(s, ":status=200")
	}}, &transport.ServerConfig{Proxy100Continue: true})
	_, _ = cc.Write([]byte(head))
	if got := read(cc); got != "HTTP/1.1 100 Continue\r\n\r\n" {
		t.Errorf("got %q", got)
	}
	_, _ = cc.Write([]byte("abc"))
	_ = cc.CloseWrite()
	b, _ := io.ReadAll(cc)
	if string(b) != "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n" {
		t.Errorf("got %q", b)
	}
	wait(t, done)
}

func TestAnEarlyAnswerNeverLetsTheBodyPassForARequest(t *testing.T) {
	hidden := "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
	for name, c := range map[string]struct {
		in   string
		want int // answers
	}{
		"the body is here":      {"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 33\r\n\r\n" + hidden + "GET /2 HTTP/1.1\r\nHost: a\r\n\r\n", 2},
		"chunks are here":       {"POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n21\r\n" + hidden + "\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n", 2},
		"some is missing":       {"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat(hidden, 10), 1},
		"chunks without an end": {"POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n21\r\n" + hidden + "\r\n", 1},
	} {
		t.Run(name, func(t *testing.T) {
			if len(hidden) != 33 {
				t.Fatal(len(hidden))
			}
			var paths []string
			out := raw(t, c.in, &handler{serve: func(s transport.ServerStream) {
				var h message.Header
				s.ReadHeaders(&h)
				paths = append(paths, h.Get(message.Path))
				_ = reply(s, ":status=403")
			}}, &transport.ServerConfig{})
			if strings.Contains(strings.Join(paths, " "), "hidden") || len(paths) != c.want || strings.Count(out, "403") != c.want {
				t.Errorf("served %q, wire %q", paths, out)
			}
			if closed := strings.Contains(out, "connection: close"); closed != (c.want == 1) {
				t.Errorf("wire %q", out)
			}
		})
	}
}

func TestUpgradeAndConnectBecomeTunnelsThatStartWithBufferedBytes(t *testing.T) {
	for name, conns := range kinds {
		for in, fields := range map[string]string{
			"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\nearly ": ":status=101 upgrade=foo",
			"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\nearly ":                                 ":status=200",
		} {
			t.Run(name+" "+fields, func(t *testing.T) {
				cc, sc := conns(t)
				tunnel := make(chan netio.Conn, 1)
				done := start(sc, &handler{serve: func(s transport.ServerStream) {
					var h message.Header
					for f := range strings.FieldsSeq(fields) {
						n, v, _ := strings.Cut(f, "=")
						h.Add(n, v)
					}
					if err := s.WriteHeaders(&h, false); err != nil {
						t.Error(err)
					}
					tunnel <- s.Tunnel()
				}}, &transport.ServerConfig{})
				_, _ = cc.Write([]byte(in))
				tn := <-tunnel
				_, _ = cc.Write([]byte("late"))
				got := make([]byte, 10)
				if _, err := io.ReadFull(tn, got); err != nil || string(got) != "early late" {
					t.Errorf("got %q, %v", got, err)
				}
				_, _ = tn.Write([]byte("answer"))
				_ = tn.CloseWrite()
				b, _ := io.ReadAll(cc)
				if s := string(b); !strings.HasSuffix(s, "\r\n\r\nanswer") || strings.Contains(s, "content-length") || strings.Contains(s, "chunked") {
					t.Errorf("got %q", b)
				}
				select {
				case <-done:
					t.Error("the connection ended before its tunnel")
				default:
				}
				_ = tn.Close()
				wait(t, done)
				_ = cc.Close()
			})
		}
	}
}

func TestARefusedTunnelEndsTheConnection(t *testing.T) {
	for _, first := range []string{"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"} {
		out := raw(t, first+"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n", answers(":status=403"), &transport.ServerConfig{})
		if strings.Count(out, "403") != 1 || !strings.Contains(out, "connection: close") {
			t.Errorf("%q: got %q", first, out)
		}
	}
}
