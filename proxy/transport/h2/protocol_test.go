package h2

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// site is what the scripted servers serve.
type site struct {
	resets    chan struct{}
	tunnelled chan int
}

func newSite() *site {
	return &site{resets: make(chan struct{}, 10_000), tunnelled: make(chan int, 10)}
}

func (w *site) serve(s transport.ServerStream) {
	var h message.Header
	s.ReadHeaders(&h)
	if h.Get(":method") == "CONNECT" {
		w.connect(s, h.Get(":authority"))
		return
	}
	path := h.Get(":path")
	done := func(h *message.Header, body string) {
		if s.WriteHeaders(h, false) == nil {
			_ = s.WriteData([]byte(body), true)
		}
	}
	ok := header(":status", "200")
	switch path {
	case "/echo":
		echo(rereadable{s, path})
	case "/204":
		_ = s.WriteHeaders(header(":status", "204"), true)
	case "/head":
		var b bytes.Buffer
		for i := range h.Len() {
			fmt.Fprintf(&b, "%s=%s\n", h.At(i).Name, h.At(i).Value)
		}
		done(ok, b.String())
	case "/count":
		b, _ := readBody(s.Body())
		done(ok, "n="+strconv.Itoa(len(b)))
	case "/hang":
		<-gone(s)
		w.resets <- struct{}{}
	case "/resets":
		ch := gone(s)
		select {
		case <-w.resets:
			done(ok, "n=1")
		case <-ch:
		}
	case "/minute": // bubbles only
		time.Sleep(time.Minute)
		_ = s.WriteHeaders(header(":status", "204"), true)
	case "/early":
		done(ok, "done")
	case "/tunnelled":
		ch := gone(s)
		select {
		case n := <-w.tunnelled:
			done(ok, "n="+strconv.Itoa(n))
		case <-ch:
		}
	case "/noend":
	case "/refuse":
		s.Reset(transport.RemoteRefused)
	case "/103":
		_ = s.WriteInformational(header(":status", "103", "link", "x"))
		_ = s.WriteHeaders(header(":status", "204"), true)
	case "/hop":
		_ = s.WriteHeaders(header(":status", "204", "connection", "x", "keep-alive", "1", "transfer-encoding", "chunked", "upgrade", "h2c", "proxy-connection", "x", "x-kept", "1"), true)
	case "/badfield":
		_ = s.WriteHeaders(header(":status", "200", "x-new-1", "v", "x-bad", "a\r\nb"), true)
	case "/drain":
		s.CloseAfter()
		_ = s.WriteHeaders(header(":status", "204"), true)
	case "/ws":
		_ = s.WriteHeaders(header(":status", "101", "connection", "upgrade", "upgrade", "websocket"), false)
		pump(s.Tunnel())
	default:
		if n, found := strings.CutPrefix(path, "/size/"); found {
			size, _ := strconv.Atoi(n)
			done(ok, strings.Repeat("d", size))
			return
		}
		done(header(":status", "404"), "")
	}
}

// gone is closed when the client has reset s.
func gone(s transport.ServerStream) <-chan struct{} {
	ch := make(chan struct{})
	s.OnReset(func(error) { close(ch) })
	return ch
}

func pump(c netio.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			if _, err := c.Write(buf[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	_ = c.CloseWrite()
	_ = c.Close()
}

func (w *site) connect(s transport.ServerStream, authority string) {
	if authority == "refused:80" {
		_ = s.WriteHeaders(header(":status", "503"), true)
		return
	}
	if s.WriteHeaders(header(":status", "200", "content-length", "0"), false) != nil {
		return
	}
	c := s.Tunnel()
	switch authority {
	case "half:80":
		_, _ = c.Write([]byte("bye"))
		_ = c.CloseWrite()
		b, _ := io.ReadAll(c)
		w.tunnelled <- len(b)
		_ = c.Close()
	case "reset:80":
		c.Reset()
	default:
		go pump(c)
	}
}

// rereadable lets echo read a head that was read before.
type rereadable struct {
	transport.ServerStream
	path string
}

func (r rereadable) ReadHeaders(h *message.Header) { h.Reset(); h.Add(":path", r.path) }

// options applies a case's "@ key=value" line.
func options(script string, cfg *transport.ServerConfig) string {
	line, rest, _ := strings.Cut(script, "\n")
	if !strings.HasPrefix(line, "@ ") {
		return script
	}
	for o := range strings.FieldsSeq(line[2:]) {
		k, v, _ := strings.Cut(o, "=")
		n, _ := strconv.Atoi(v)
		switch k {
		case "stream":
			cfg.InitialStreamWindow = uint32(n)
		case "conn":
			cfg.InitialConnWindow = uint32(n)
		case "frame":
			cfg.MaxFrameSize = uint32(n)
		case "streams":
			cfg.MaxConcurrentStreams = uint32(n)
		case "fields":
			cfg.MaxHeaders = n
		case "bytes":
			cfg.MaxHeaderBytes = n
		case "requests":
			cfg.MaxRequestsPerConnection = n
		case "connect":
			cfg.AllowConnect = v == "true"
		default:
			panic(o)
		}
	}
	return rest
}

func TestServerProtocol(t *testing.T) {
	ar, err := txtar.ParseFile("testdata/server.txtar")
	if err != nil {
		t.Fatal(err)
	}
	const want = 196
	if len(ar.Files) != want {
		t.Errorf("%d cases, want %d", len(ar.Files), want)
	}
	for _, f := range ar.Files {
		t.Run(f.Name, func(t *testing.T) {
			t.Parallel()
			cfg := &transport.ServerConfig{AllowConnect: true}
			script := options(string(f.Data), cfg)
			c, _ := serve(t, cfg, &handlerFunc{f: newSite().serve})
			w := newWire(t, c)
			w.out = append(w.out, preface...)
			w.send([]string{"SETTINGS"})
			w.finish(w.run(script))
		})
	}
}

func TestBadPrefacesAreClosed(t *testing.T) {
	for _, p := range []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", "\x16\x03\x01"} {
		h := &handlerFunc{f: echo}
		c, _ := serve(t, &transport.ServerConfig{}, h)
		w := newWire(t, c)
		w.out = append(w.out, p...)
		w.finish(w.run("< GOAWAY PROTOCOL_ERROR"))
		if pe := h.errors(); len(pe) != 1 {
			t.Error(pe)
		}
	}
	c, _ := serve(t, &transport.ServerConfig{}, &handlerFunc{f: echo})
	w := newWire(t, c)
	w.out = append(w.out, preface...)
	w.finish(w.run("> PING\n< GOAWAY PROTOCOL_ERROR"))
}

// Frames may arrive in pieces of any size.
func TestFramesCutAnywhereMeanTheSame(t *testing.T) {
	var b bytes.Buffer
	w := newWire(t, nil)
	w.out = append(w.out, preface...)
	for _, l := range []string{"SETTINGS", "POST 1 x-a=b pad=3", "DATA 1 \"hello \"", "RAW 000003f0ff00000000010203", "DATA 1 pad=9 \"wor\"", "PING", "POST 3 more", "CONTINUATION 3 k=v", "DATA 3 end 3000", "DATA 1 end pad=3 \"ld\""} {
		w.send(words(l))
	}
	b.Write(w.out)
	in := b.Bytes()
	for step := 1; step < 100; step += 1 + step/3 {
		c, _ := serve(t, &transport.ServerConfig{}, &handlerFunc{f: newSite().serve})
		w := newWire(t, c)
		var wg sync.WaitGroup
		wg.Go(func() {
			for p := in; len(p) > 0; {
				n := min(step, len(p))
				_, _ = c.Write(p[:n])
				p = p[n:]
			}
		})
		got := map[uint32]string{}
		for len(got[1]) < len("hello world") || len(got[3]) < 3000 {
			f, err := w.fr.ReadFrame()
			if err != nil {
				t.Fatal(step, err, got)
			}
			if d, ok := f.(interface{ Data() []byte }); ok {
				got[f.Header().StreamID] += string(d.Data())
			}
		}
		wg.Wait()
		if got[1] != "hello world" {
			t.Errorf("step %d: %q", step, got[1])
		}
	}
}
