package websocket

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// say writes b in pieces of chop bytes.
func say(w io.Writer, b []byte, chop int) {
	if chop == 0 {
		chop = max(len(b), 1)
	}
	for len(b) > 0 {
		n := min(chop, len(b))
		if _, err := w.Write(b[:n]); err != nil {
			return
		}
		b = b[n:]
	}
}

// wantCases is how many exchanges there are; each goes all the ways.
const wantCases = 153

// Both ends say the same kind of thing at once, and hear what the other said, byte
// for byte, whether RFC 6455 allows it or not.
func TestEveryFrameArrivesAsItWas(t *testing.T) {
	l := newLab(t)
	list := exchanges()
	if len(list) != wantCases {
		t.Errorf("%d cases, want %d", len(list), wantCases)
	}
	for way, name := range ways {
		t.Run(name, func(t *testing.T) {
			passed := 0
			for _, x := range list {
				if t.Run(x.name, func(t *testing.T) { x.run(t, l, way) }) {
					passed++
				}
			}
			t.Logf("%d of %d cases", passed, len(list))
		})
	}
}

func (x *exchange) run(t *testing.T, l *lab, way int) {
	client, server := l.open(t, way, x.extensions)
	if got := server.head.Get("Sec-Websocket-Extensions"); got != x.extensions {
		t.Errorf("the origin was offered %q", got)
	}
	if got := client.head.Get("Sec-Websocket-Extensions"); got != x.extensions {
		t.Errorf("the client was told %q", got)
	}
	if got := server.head.Get("Sec-Websocket-Version"); got != "13" {
		t.Errorf("version %q", got)
	}
	var wg sync.WaitGroup
	for i, d := range [][2]*end{{client, server}, {server, client}} {
		b := x.make(i == 0)
		wg.Go(func() { say(d[0], b, x.chop) })
		wg.Go(func() {
			got := make([]byte, len(b))
			if n, err := io.ReadFull(d[1], got); err != nil || !bytes.Equal(got, b) {
				t.Errorf("direction %d: %d bytes of %d, or others: %v", i, n, len(b), err)
			}
		})
	}
	wg.Wait()
}

// A message of 64 MiB goes both ways at once, in one frame and in fragments.
func TestAMessageOf64MiBArrivesWhole(t *testing.T) {
	l := newLab(t)
	size := 64 << 20
	if testing.Short() {
		size = 4 << 20
	}
	message := frame(nil, fin|opBinary, true, bytes.Repeat([]byte("0123456789abcde\n"), size/16))
	want := sha256.Sum256(message)
	for way, name := range ways {
		t.Run(name, func(t *testing.T) {
			client, server := l.open(t, way, "")
			var wg sync.WaitGroup
			for _, d := range [][2]*end{{client, server}, {server, client}} {
				wg.Go(func() { say(d[0], message, 64<<10) })
				wg.Go(func() {
					h := sha256.New()
					if n, err := io.CopyN(h, d[1], int64(len(message))); err != nil || [32]byte(h.Sum(nil)) != want {
						t.Errorf("%d bytes of %d, or others: %v", n, len(message), err)
					}
				})
			}
			wg.Wait()
		})
	}
}

// When one end has said its last, the other end hears that, after all that was
// said before.
func TestTheEndArrivesBehindTheLastByte(t *testing.T) {
	l := newLab(t)
	for way, name := range ways {
		t.Run(name, func(t *testing.T) {
			client, server := l.open(t, way, "")
			last := frame(frame(nil, fin|opText, true, []byte("bye")), fin|opClose, true, []byte("\x03\xe8"))
			say(client, last, 0)
			client.finish()
			if b, err := io.ReadAll(server); err != nil || !bytes.Equal(b, last) {
				t.Errorf("the origin got %q, %v", b, err)
			}
			say(server, last, 0)
			server.finish()
			server.close()
			server.close = func() {}
			if b, err := io.ReadAll(client); err != nil || !bytes.Equal(b, last) {
				t.Errorf("the client got %q, %v", b, err)
			}
		})
	}
}

// A WebSocket library at both ends, over HTTP/1.1 and, in between, HTTP/2: messages
// of all sizes with and without compression, pings, and every code that it may
// close with.
func TestALibraryTalksToItself(t *testing.T) {
	l := &lab{}
	served := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionContextTakeover, CompressionThreshold: 1})
		if err != nil {
			return
		}
		c.SetReadLimit(-1)
		for {
			typ, b, err := c.Read(r.Context())
			if err != nil {
				return
			}
			if code, ok := strings.CutPrefix(string(b), "close "); ok {
				n, _ := strconv.Atoi(code)
				_ = c.Close(websocket.StatusCode(n), "as you wish")
				return
			}
			if err := c.Write(r.Context(), typ, b); err != nil {
				return
			}
		}
	})}
	origin := listen(t)
	go func() { _ = served.Serve(origin) }()
	t.Cleanup(func() { _ = served.Close() })
	l.start(t, running.Port(origin), running.Port(origin))
	for _, way := range []int{0, 3} {
		for _, mode := range []websocket.CompressionMode{websocket.CompressionDisabled, websocket.CompressionNoContextTakeover, websocket.CompressionContextTakeover} {
			dial := func() *websocket.Conn {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				c, resp, err := websocket.Dial(ctx, "ws://"+running.Address(l.ports[way])+"/", &websocket.DialOptions{CompressionMode: mode, CompressionThreshold: 1})
				if err != nil {
					t.Fatalf("%s: %v", ways[way], err)
				}
				if got := resp.Header.Get("Sec-Websocket-Extensions"); (got != "") != (mode != websocket.CompressionDisabled) {
					t.Errorf("%s: extensions %q", ways[way], got)
				}
				c.SetReadLimit(-1)
				return c
			}
			c := dial()
			for _, n := range []int{0, 1, 125, 126, 65535, 65536, 1 << 20} {
				want := bytes.Repeat([]byte("abcdefg"), n/7+1)[:n]
				if err := c.Write(t.Context(), websocket.MessageBinary, want); err != nil {
					t.Fatal(err)
				}
				if typ, got, err := c.Read(t.Context()); err != nil || typ != websocket.MessageBinary || !bytes.Equal(got, want) {
					t.Fatalf("%s: %d bytes of %d came back, %v", ways[way], len(got), n, err)
				}
			}
			read := c.CloseRead(t.Context())
			for range 3 {
				if err := c.Ping(read); err != nil {
					t.Errorf("%s: ping: %v", ways[way], err)
				}
			}
			_ = c.CloseNow()
			for _, code := range []string{"1000", "1001", "1002", "1003", "1007", "1008", "1009", "1011", "3000", "4999"} {
				c := dial()
				if err := c.Write(t.Context(), websocket.MessageText, []byte("close "+code)); err != nil {
					t.Fatal(err)
				}
				_, _, err := c.Read(t.Context())
				if got := websocket.CloseStatus(err); strconv.Itoa(int(got)) != code || !strings.Contains(err.Error(), "as you wish") {
					t.Errorf("%s: closed with %s, got %v", ways[way], code, err)
				}
				_ = c.CloseNow()
			}
		}
	}
}
