package h2

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// request performs one exchange and describes its result: status, fields, "|",
// body, and trailers after a second "|"; or "error" and the cause.
//
//	! GET, HEAD, POST "body"    a request
//	! POST-OPEN "body"          a request whose body does not end
//	! GET-SLOW                  the response's body is read after its error
//	! CONNECT, UPGRADE "body"   a tunnel that sends body and reads to the end
func request(cc transport.ClientConn, ws []string) string {
	fail := func(err error) string {
		var re *transport.ResetError
		if !errors.As(err, &re) {
			return "error " + err.Error()
		}
		if re.Detail == "" {
			return "error " + re.Reason.String()
		}
		return "error " + re.Reason.String() + ": " + re.Detail
	}
	cs, err := cc.NewStream()
	if err != nil {
		return fail(err)
	}
	defer cs.Release()
	op, body := ws[0], ""
	if len(ws) > 1 {
		body = ws[1]
	}
	method, _, _ := strings.Cut(op, "-")
	h := header(":method", method, ":scheme", "http", ":authority", "example.com", ":path", "/")
	switch op {
	case "CONNECT":
		h = header(":method", "CONNECT", ":authority", "10.0.0.1:80")
	case "UPGRADE":
		h.Set(":method", "GET")
		h.Add("upgrade", "websocket")
		h.Add("connection", "upgrade")
	}
	tunnel := op == "CONNECT" || op == "UPGRADE"
	if err := cs.WriteHeaders(h, body == "" && !tunnel); err != nil {
		return fail(err)
	}
	if body != "" && !tunnel {
		if err := cs.WriteData([]byte(body), op != "POST-OPEN"); err != nil {
			return fail(err)
		}
	}
	var resp message.Header
	status := 100
	for status < 101 || status == 103 {
		if status, _, err = cs.ReadHeaders(&resp); err != nil {
			return fail(err)
		}
	}
	out := strconv.Itoa(status)
	for i := range resp.Len() {
		if f := resp.At(i); f.Name[0] != ':' {
			out += fmt.Sprintf(" %s=%s", f.Name, f.Value)
		}
	}
	if tunnel && status < 300 {
		c := cs.Tunnel()
		defer c.Close()
		_, _ = c.Write([]byte(body))
		_ = c.CloseWrite()
		b, err := io.ReadAll(c)
		if err != nil {
			return fail(err)
		}
		return out + " | " + string(b)
	}
	b := cs.Body()
	defer b.Close()
	if op == "GET-SLOW" {
		for err := error(nil); err == nil; {
			s := (*stream)(cs.(*clientStream))
			s.mu.Lock()
			for s.rerr == nil {
				s.waitRead()
			}
			err = s.rerr
			s.mu.Unlock()
		}
	}
	got, err := readBody(b)
	if err != nil {
		return fail(err)
	}
	out += " | " + got
	if tr := b.Trailers(); tr != nil {
		out += " |"
		for i := range tr.Len() {
			out += fmt.Sprintf(" %s=%s", tr.At(i).Name, tr.At(i).Value)
		}
	}
	return strings.TrimSpace(out)
}

func TestClientProtocol(t *testing.T) {
	ar, err := txtar.ParseFile("testdata/client.txtar")
	if err != nil {
		t.Fatal(err)
	}
	const want = 76
	if len(ar.Files) != want {
		t.Errorf("%d cases, want %d", len(ar.Files), want)
	}
	for _, f := range ar.Files {
		t.Run(f.Name, func(t *testing.T) {
			t.Parallel()
			var scfg transport.ServerConfig
			script := string(f.Data)
			nosettings := strings.HasPrefix(script, "@ nosettings\n")
			if nosettings {
				_, script, _ = strings.Cut(script, "\n")
			}
			script = options(script, &scfg)
			a, b := netio.Pipe(clientAddr, serverAddr)
			cc, err := NewClient(a, &transport.ClientConfig{MaxHeaders: scfg.MaxHeaders, InitialStreamWindow: scfg.InitialStreamWindow})
			if err != nil {
				t.Fatal(err)
			}
			w := newWire(t, b)
			w.client = cc
			defer func() {
				_ = b.Close()
				<-cc.Done()
				if n := cc.Active(); n != 0 {
					t.Errorf("%d streams active at the end", n)
				}
			}()
			got := make([]byte, len(preface))
			if _, err := io.ReadFull(readOnly{b}, got); err != nil || string(got) != preface {
				t.Fatalf("%q %v", got, err)
			}
			if !nosettings {
				w.send([]string{"SETTINGS"})
				w.flush()
			}
			w.finish(w.run(script))
		})
	}
}
