package h2

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/sweep"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/transport/h1"
)

// block encodes a list of fields, one a line, name and value separated by the
// first colon behind the first byte; "\n" in one is a line feed.
func block(fields string) (b []byte) {
	for line := range strings.SplitSeq(fields, "\n") {
		line = strings.ReplaceAll(line, `\n`, "\n")
		name, value := line, ""
		if i := strings.IndexByte(line[min(1, len(line)):], ':'); i >= 0 {
			name, value = line[:i+1], line[i+2:]
		}
		b = append(b, 0) // never in the table
		for _, s := range []string{name, value} {
			if n := len(s); n < 127 {
				b = append(b, byte(n))
			} else {
				b = append(b, 127)
				for n -= 127; n >= 128; n >>= 7 {
					b = append(b, byte(n)|128)
				}
				b = append(b, byte(n))
			}
			b = append(b, s...)
		}
	}
	return b
}

var (
	canonicalRequestLine = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+ [^ \x00-\x20\x7f]+ HTTP/1\\.1$")
	canonicalField       = regexp.MustCompile("^([!#$%&'*+.^_`|~0-9a-z-]+): ((?:[^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)$")
)

// checkCanonical holds one request head of HTTP/1, all there is in out, to RFC
// 9112 read strictly, and to the fields that it was made of.
func checkCanonical(t *testing.T, h *message.Header, out string) {
	t.Helper()
	head, ok := strings.CutSuffix(out, "\r\n\r\n")
	lines := strings.Split(head, "\r\n")
	if !ok || strings.ContainsAny(strings.Join(lines, ""), "\r\n\x00") || !canonicalRequestLine.MatchString(lines[0]) {
		t.Fatalf("%q is no head", out)
	}
	target := h.Get(message.Path)
	if h.Get(message.Method) == "CONNECT" {
		target = h.Get(message.Authority)
	}
	if want := fmt.Sprintf("%s %s HTTP/1.1", h.Get(message.Method), target); lines[0] != want {
		t.Fatalf("%q: want %q", lines[0], want)
	}
	own := []string{"host", "connection", "upgrade", "content-length", "transfer-encoding"}
	var got, want []string
	count := map[string]int{}
	for _, l := range lines[1:] {
		m := canonicalField.FindStringSubmatch(l)
		if m == nil {
			t.Fatalf("field %q in %q", l, out)
		}
		count[m[1]]++
		if !slices.Contains(own, m[1]) {
			got = append(got, m[1]+": "+m[2])
		}
	}
	for i := range h.Len() {
		if f := h.At(i); f.Name[0] != ':' && !slices.Contains(own, f.Name) && f.Name != "keep-alive" && f.Name != "proxy-connection" && f.Name != "http2-settings" {
			want = append(want, f.Name+": "+strings.Trim(f.Value, " \t"))
		}
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%q: fields %q, want %q", out, got, want)
	}
	chunked := strings.Contains(out, "\r\ntransfer-encoding: chunked\r\n")
	if count["host"] != 1 || count["content-length"]+count["transfer-encoding"] > 1 || (count["transfer-encoding"] == 1) != chunked || count["upgrade"] > 1 || count["connection"] > 1 ||
		chunked && count["upgrade"] > 0 {
		t.Fatalf("%q frames its body in %v", out, count)
	}
}

// FuzzRequestsBecomeCanonicalHTTP1: a request of HTTP/2 that is accepted is
// refused by the writer of HTTP/1, which then sends nothing, or written as one
// head that a strict reader of RFC 9112 takes, with the same target and fields
// and one framing.
func FuzzRequestsBecomeCanonicalHTTP1(f *testing.F) {
	const get = ":method:GET\n:scheme:http\n:authority:a\n:path:/x"
	for _, s := range []string{
		get, get + "?a b", get + "\nx:y\nx:z\ncookie:a=b\ncookie:c=d", get + " HTTP/1.1\\nX: y", get + `\nx: y`, get + "\nb:\\nTransfer-Encoding: chunked", get + "\nhost:a\nte:trailers",
		":method:POST\n:scheme:http\n:authority:a:80\n:path:/\ncontent-length:5", ":method:POST\n:scheme:https\n:path:/\nhost:b\ncontent-length:+5",
		":method:CONNECT\n:authority:b:80", ":method:CONNECT\n:protocol:websocket\n:scheme:http\n:authority:a\n:path:/ws\nsec-websocket-key:x",
		":method:OPTIONS\n:scheme:http\n:authority:a\n:path:*", get + "\nconnection:close", get + "\ntransfer-encoding:chunked", get + "\nX-Upper:a", get + "\nx: \t a \t ",
	} {
		f.Add(s, true)
		f.Add(s, false)
	}
	buf := make([]byte, 64<<10)
	f.Fuzz(sweep.Around(f, func(t *testing.T, fields string, end bool) {
		var h message.Header
		var b head
		b.reset(&h, sectionRequest, 60<<10, 100)
		if newTestDecoder().decode(block(fields), &b) != nil {
			return
		}
		if b.finishRequest(true); b.fault != "" || b.over || !h.Has(message.Authority) {
			return // the connection manager refuses what has no host
		}
		near, far := netio.Pipe(clientAddr, serverAddr)
		c := h1.NewClient(near, &transport.ClientConfig{})
		s, err := c.NewStream()
		if err != nil {
			t.Fatal(err)
		}
		err = s.WriteHeaders(&h, end)
		if err == nil {
			err = s.Flush()
		}
		n, _ := far.TryRead(buf)
		s.Reset()
		s.Release()
		_ = far.Close()
		if err != nil {
			if n > 0 {
				t.Fatalf("refused (%v) after %q", err, buf[:n])
			}
			return
		}
		sweep.Accepted()
		checkCanonical(t, &h, string(bytes.Clone(buf[:n])))
	}))
}
