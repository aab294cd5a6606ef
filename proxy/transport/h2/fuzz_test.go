package h2

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/tools/txtar"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/sweep"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// seeds adds what the scripts of a corpus send.
func seeds(f *testing.F, file string) {
	ar, err := txtar.ParseFile(file)
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range ar.Files {
		w := &wire{data: map[uint32][]byte{}}
		w.enc = hpack.NewEncoder(&w.buf)
		w.send([]string{"SETTINGS"})
		for line := range strings.SplitSeq(string(c.Data), "\n") {
			times := 1
			if strings.HasPrefix(line, "x") {
				times, line = 3, line[strings.IndexByte(line, ' ')+1:]
			}
			ws := words(line)
			if len(ws) == 0 || ws[0] != ">" || ws[1] == "EOF" {
				continue
			}
			for i := range times {
				cp := slices.Clone(ws[1:])
				for j := range cp {
					cp[j] = strings.ReplaceAll(cp[j], "%d", strconv.Itoa(2*i+1))
				}
				if at := slices.Index(cp, ";"); at >= 0 {
					w.send(cp[:at])
					cp = cp[at+1:]
				}
				w.send(cp)
			}
		}
		if len(w.out) < 4096 {
			f.Add(w.out)
		}
	}
}

// discard reads and drops what the connection under test sends.
func discard(c netio.Conn, wg *sync.WaitGroup) {
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	})
}

func deadline(t *testing.T, done <-chan struct{}, what string) {
	t.Helper()
	tm := time.NewTimer(10 * time.Second)
	defer tm.Stop()
	select {
	case <-done:
	case <-tm.C:
		t.Fatal(what)
	}
}

// checkEmpty holds an ended connection to what it must have given back.
func checkEmpty(t *testing.T, c *conn) {
	t.Helper()
	waitFor(t, func() bool { // the flusher and tunnels end a little later
		c.mu.Lock()
		defer c.mu.Unlock()
		return !c.flushing && c.buffered.Load() == 0
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.streams) != 0 || c.running != 0 || c.held != 0 {
		t.Errorf("%d streams, %d running, %d held", len(c.streams), c.running, c.held)
	}
	if c.recvWin < 0 || c.recvWin > maxWindow {
		t.Errorf("receive window %d", c.recvWin)
	}
}

// FuzzServer: whatever frames come, the connection ends with its input, keeps
// to its limits, and gives back streams, buffers and windows.
func FuzzServer(f *testing.F) {
	seeds(f, "testdata/server.txtar")
	f.Fuzz(sweep.Around(f, func(t *testing.T, in []byte) {
		a, b := netio.Pipe(clientAddr, serverAddr)
		st := newSite()
		h := &handlerFunc{f: func(s transport.ServerStream) {
			defer func() {
				if p := recover(); p != nil {
					t.Error(p)
				}
			}()
			st.serve(s)
		}}
		s := NewServer(b, &transport.ServerConfig{AllowConnect: true, MaxConcurrentStreams: 20, MaxHeaders: 20, MaxHeaderBytes: 4096}, h)
		done := make(chan struct{})
		go s.Serve(func() { close(done) })
		var wg sync.WaitGroup
		discard(a, &wg)
		_, _ = a.Write([]byte(preface))
		_, _ = a.Write(in)
		if n := s.Active(); n > 40 {
			t.Errorf("%d active streams", n)
		}
		_ = a.CloseWrite()
		deadline(t, done, "the connection did not end")
		_ = a.Close()
		wg.Wait()
		checkEmpty(t, &s.c)
	}))
}

// FuzzClient: whatever a server sends, requests and connection end, and
// streams, buffers and windows are given back.
func FuzzClient(f *testing.F) {
	seeds(f, "testdata/client.txtar")
	f.Fuzz(sweep.Around(f, func(t *testing.T, in []byte) {
		a, b := netio.Pipe(clientAddr, serverAddr)
		cc, err := NewClient(a, &transport.ClientConfig{MaxHeaders: 20, MaxHeaderBytes: 4096})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		discard(b, &wg)
		for _, ws := range [][]string{{"GET"}, {"POST", "body"}, {"CONNECT", "in"}, {"POST-OPEN", "x"}} {
			wg.Go(func() {
				_ = request(cc, ws)
			})
		}
		for range 1000 { // until the requests have been sent, so that runs repeat
			if cc.Active() == 4 {
				break
			}
			time.Sleep(10 * time.Microsecond)
		}
		_, _ = b.Write(in)
		_ = b.CloseWrite()
		deadline(t, cc.Done(), "the connection did not end")
		_ = b.Close()
		wg.Wait()
		checkEmpty(t, &cc.(*client).c)
	}))
}

// FuzzFrameHeadersAgreeWithXNet: our parser and x/net's agree on where frames
// begin and which are too large.
func FuzzFrameHeadersAgreeWithXNet(f *testing.F) {
	f.Add([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 0xf0, 0, 0, 0, 0, 9, 'x'})
	f.Fuzz(func(t *testing.T, in []byte) {
		fr := http2.NewFramer(nil, bytes.NewReader(in))
		for p := in; len(p) >= frameHeaderLen; {
			h, err := fr.ReadFrameHeader()
			if err != nil {
				return
			}
			n := int(p[0])<<16 | int(p[1])<<8 | int(p[2])
			if int(h.Length) != n || h.Type != http2.FrameType(p[3]) || uint8(h.Flags) != p[4] || h.StreamID != be32(p[5:])&maxStreamID {
				t.Fatalf("x/net %v, own % x", h, p[:frameHeaderLen])
			}
			own := appendFrameHeader(nil, n, frameType(p[3]), p[4], be32(p[5:])&maxStreamID)
			if p[5]&0x80 == 0 && !bytes.Equal(own, p[:frameHeaderLen]) {
				t.Fatalf("wrote % x for % x", own, p[:frameHeaderLen])
			}
			// x/net's framer keeps the header it has read until the payload
			// is read too: start anew behind it.
			p = p[frameHeaderLen:]
			p = p[min(n, len(p)):]
			fr = http2.NewFramer(nil, bytes.NewReader(p))
		}
	})
}
