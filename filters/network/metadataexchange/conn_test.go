package metadataexchange

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/conntest"
	"github.com/fairlead-mesh/fairlead/filters/internal/peers"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// field writes one length-delimited field.
func field(num protowire.Number, v string) string {
	return string(protowire.AppendString(protowire.AppendTag(nil, num, protowire.BytesType), v))
}

// A Struct is a map of field 1, whose entries have the key in field 1 and the
// value in field 2; a Value has a string in field 3 and a Struct in field 5.
func text(key, v string) string   { return field(1, field(1, key)+field(2, field(3, v))) }
func nested(key, s string) string { return field(1, field(1, key)+field(2, field(5, s))) }

func anyOf(s string) string {
	return field(1, "type.googleapis.com/google.protobuf.Struct") + field(2, s)
}

func framed(payload string) string {
	b := binary.BigEndian.AppendUint32([]byte{0x3d, 0x23, 0x04, 0x67}, uint32(len(payload)))
	return string(b) + payload
}

// told is what a sidecar says.
var told = anyOf(nested("x-envoy-peer-metadata",
	text("WORKLOAD_NAME", "sleep")+text("NAMESPACE", "ns1")+text("OWNER", "kubernetes://apis/apps/v1/namespaces/ns1/deployments/sleep")+
		nested("LABELS", text("app", "sleep")+text("team", "blue")+text("other", "x"))) +
	text("x-envoy-peer-metadata-id", "sidecar~10.0.0.1~sleep.ns1~ns1.svc.cluster.local"))

func newTestExchange(tb testing.TB, scope *stats.Scope) *exchange {
	tb.Helper()
	e, err := newExchange(&filters.Env{Stats: scope, Node: &filters.Node{ID: "me~1", Namespace: "n", WorkloadName: "gw", Labels: map[string]string{"app": "gw", "team": "red", "more": "x"}}}, &Config{Protocol: "p", Labels: []string{"team"}})
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

// readAll reads to the end as a join does: without blocking while it can.
func readAll(tb testing.TB, c netio.Conn, size func() int) (string, error) {
	tb.Helper()
	var b strings.Builder
	for range 1 << 20 {
		p := make([]byte, size())
		read := c.Read
		if size()%2 == 0 {
			read = c.TryRead
		}
		n, err := read(p)
		b.Write(p[:n])
		if errors.Is(err, netio.ErrWouldBlock) || errors.Is(err, conntest.ErrWait) {
			return b.String(), nil
		}
		if err != nil {
			return b.String(), err
		}
		if n == 0 {
			tb.Fatal("a read gives nothing")
		}
	}
	tb.Fatal("no end")
	return "", nil
}

func TestAFrameIsTakenOffWhateverPiecesItComesIn(t *testing.T) {
	for _, tc := range []struct {
		name, in, out string
		workload      string // of the peer
		header, frame uint64 // counted as missing
	}{
		{"a frame and bytes", framed(told) + "hello", "hello", "sleep", 0, 0},
		{"a frame alone", framed(told), "", "sleep", 0, 0},
		{"bytes of somebody without the filter", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "", 1, 0},
		{"fewer bytes than a head", "hi", "hi", "", 1, 0},
		{"no byte", "", "", "", 1, 0},
		{"a head of magic only", framed("")[:6], framed("")[:6], "", 1, 0},
		{"an empty frame", framed("") + "hello", "hello", "", 0, 1},
		{"a frame that is cut off", framed(told)[:40], "", "", 1, 0},
		{"a payload that is no Any", framed("\xff\xff\xff") + "hello", "hello", "", 0, 1},
		{"an Any of something else", framed(field(1, "type.googleapis.com/google.protobuf.Duration")+field(2, "")) + "hello", "hello", "", 0, 1},
		{"an Any without a Struct inside", framed(field(1, "type.googleapis.com/google.protobuf.Struct")+field(2, "\xff")) + "hello", "hello", "", 0, 1},
		{"a Struct without a peer", framed(anyOf(text("x", "y"))) + "hello", "hello", "", 0, 1},
		{"a peer that is no Struct", framed(anyOf(text("x-envoy-peer-metadata", "y"))) + "hello", "hello", "", 0, 1},
		{"nested without end", framed(anyOf(nested("x-envoy-peer-metadata", deep(40)))) + "hello", "hello", "", 0, 1},
		{"the largest frame", framed(told+field(3, strings.Repeat("x", peers.MaxFrame-len(told)-4))) + "hello", "hello", "sleep", 0, 0},
		{"one that is too large", framed(told+field(3, strings.Repeat("x", peers.MaxFrame))) + "hello", "hello", "", 0, 1},
		{"a length of 4 GiB", "\x3d\x23\x04\x67\xff\xff\xff\xffhello", "", "", 1, 1},
		{"a second frame is the application's", framed(told) + framed(told), framed(told), "sleep", 0, 0},
	} {
		for _, chunk := range []int{0, 1, 3, 7, 1000} {
			set := &stats.Registry{}
			e := newTestExchange(t, set.Scope(""))
			a := &streaminfo.Awaited{}
			raw := &conntest.Conn{In: tc.in, Chunk: chunk, Ended: true}
			c := e.begin(raw, a)
			rnd := rand.New(rand.NewPCG(1, uint64(chunk)))
			got, err := readAll(t, c, func() int { return 1 + rnd.IntN(4096) })
			if got != tc.out || !errors.Is(err, io.EOF) {
				t.Errorf("%s in pieces of %d: the application reads %.60q, %v", tc.name, chunk, got, err)
			}
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("%s: after the end %v", tc.name, err)
			}
			o, over := a.Object()
			p, _ := o.(*streaminfo.Peer)
			if !over || (p == nil) != (tc.workload == "") || p != nil && p.Workload != tc.workload {
				t.Errorf("%s in pieces of %d: peer %+v, over %v", tc.name, chunk, o, over)
			}
			if h, f := e.noFrame.Value(), e.badFrame.Value(); h != tc.header || f != tc.frame {
				t.Errorf("%s: counted %d and %d, want %d and %d", tc.name, h, f, tc.header, tc.frame)
			}
		}
	}
}

func deep(n int) string {
	s := text("WORKLOAD_NAME", "w")
	for range n {
		s = nested("LABELS", s)
	}
	return s
}

func TestThePeerIsTakenFromTheFrame(t *testing.T) {
	e := newTestExchange(t, nil)
	a := &streaminfo.Awaited{}
	raw := &conntest.Conn{In: framed(told)}
	c := e.begin(raw, a)
	if _, over := a.Object(); over || raw.In == "" {
		t.Error("the frame was read before anybody asked for bytes")
	}
	if n, err := c.TryRead(make([]byte, 9)); n != 0 || !errors.Is(err, netio.ErrWouldBlock) {
		t.Errorf("%d %v", n, err)
	}
	o, _ := a.Object()
	p, ok := o.(*streaminfo.Peer)
	if !ok || p.Workload != "sleep" || p.Namespace != "ns1" || p.WorkloadType != "deployment" || p.AppName != "sleep" || len(p.Labels) != 1 || p.Labels["team"] != "blue" || p.DenseID == 0 {
		t.Errorf("%+v", o)
	}
	again := &streaminfo.Awaited{}
	_, _ = e.begin(&conntest.Conn{In: framed(told)}, again).TryRead(make([]byte, 9))
	if q, _ := again.Object(); q != o {
		t.Error("one workload is two peers")
	}
}

func TestThisSideBeginsWithItsOwnFrame(t *testing.T) {
	e := newTestExchange(t, nil)
	raw := &conntest.Conn{}
	c := e.begin(raw, &streaminfo.Awaited{})
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := netio.WriteParts(c, []byte(" "), []byte("wor"), []byte("ld")); err != nil {
		t.Fatal(err)
	}
	out := string(raw.Out)
	// By hand: an Any of a Struct, whose fields are in order.
	want := framed(anyOf(nested("x-envoy-peer-metadata", nested("LABELS", text("app", "gw")+text("team", "red"))+text("NAMESPACE", "n")+text("WORKLOAD_NAME", "gw")) + text("x-envoy-peer-metadata-id", "me~1")))
	if out != want+"hello world" {
		t.Errorf("sent\n%q\nwant\n%q", out, want+"hello world")
	}
	if p, ok := peers.FromFrame([]byte(want)[peers.FrameHead:], []string{"team"}); !ok || p.Workload != "gw" || p.Labels["team"] != "red" {
		t.Errorf("%+v %v", p, ok)
	}
}

// A connection that fails is not one whose peer says little.
type failing struct {
	conntest.Conn
	err error
}

func (f *failing) Read(p []byte) (int, error) {
	if n, err := f.Conn.Read(p); !errors.Is(err, conntest.ErrWait) {
		return n, err
	}
	return 0, f.err
}

func TestAFailureInsideTheFrameIsAFailure(t *testing.T) {
	for _, in := range []string{"", "\x3d\x23", framed(told)[:20]} {
		a := &streaminfo.Awaited{}
		c := newTestExchange(t, nil).begin(&failing{conntest.Conn{In: in}, netio.ErrReset}, a)
		for range 2 {
			if n, err := c.Read(make([]byte, 10)); n != 0 || !errors.Is(err, netio.ErrReset) {
				t.Errorf("%q: %d %v", in, n, err)
			}
		}
		if _, over := a.Object(); !over {
			t.Errorf("%q: still waits for the peer", in)
		}
	}
}

func TestParkDoesNotMissWhatIsThere(t *testing.T) {
	c := newTestExchange(t, nil).begin(&conntest.Conn{In: "no frame"}, &streaminfo.Awaited{})
	if n, err := c.Read(make([]byte, 2)); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	// Six bytes are there that the connection below doesn't know of.
	if c.Park(func() { t.Error("called back") }) {
		t.Error("parked")
	}
	if n, err := c.TryRead(make([]byte, 20)); n != 6 || err != nil {
		t.Errorf("%d %v", n, err)
	}
}

func TestBytesBehindTheFrameDoNotAllocate(t *testing.T) {
	raw := &conntest.Conn{In: framed(told) + strings.Repeat("x", 4096)}
	c := newTestExchange(t, nil).begin(raw, &streaminfo.Awaited{})
	p := make([]byte, 8)
	if a := testing.AllocsPerRun(100, func() {
		if _, err := c.TryRead(p); err != nil {
			t.Fatal(err)
		}
	}); a != 0 {
		t.Errorf("%v allocations", a)
	}
}

// FuzzFrame: however its bytes are cut, a reader gets what is behind the frame, or
// all of it if it is none, and holds no more than the frame; the peer is what a
// reader of the whole frame at once finds.
func FuzzFrame(f *testing.F) {
	f.Add([]byte(framed(told)+"hello"), uint64(1))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint64(2))
	f.Add([]byte("\x3d\x23\x04\x67\xff\xff\xff\xffhello"), uint64(3))
	f.Add([]byte(framed("")[:5]), uint64(4))
	e := newTestExchange(f, nil)
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		want, workload := string(in), ""
		if len(in) >= 8 && binary.BigEndian.Uint32(in) == 0x3d230467 {
			n := uint64(binary.BigEndian.Uint32(in[4:]))
			rest := in[8:]
			whole := uint64(len(rest)) >= n
			rest = rest[:min(uint64(len(rest)), n)]
			want = string(in[8+len(rest):])
			if whole && n <= peers.MaxFrame {
				if p, ok := peers.FromFrame(rest, e.labels); ok && p != nil {
					workload = p.Workload + "/" + p.Namespace + "/" + p.Labels["team"]
				}
			}
		}
		rnd := rand.New(rand.NewPCG(seed, 0))
		a := &streaminfo.Awaited{}
		c := e.begin(&conntest.Conn{In: string(in), Chunk: 1 + rnd.IntN(40), Ended: true}, a)
		got, err := readAll(t, c, func() int { return 1 + rnd.IntN(64) })
		if got != want || !errors.Is(err, io.EOF) {
			t.Fatalf("%q is read as %q, %v; want %q", in, got, err, want)
		}
		o, over := a.Object()
		found := ""
		if p, ok := o.(*streaminfo.Peer); ok {
			found = p.Workload + "/" + p.Namespace + "/" + p.Labels["team"]
		}
		if !over || found != workload {
			t.Fatalf("%q: peer %q, over %v, want %q", in, found, over, workload)
		}
		if x := c.(*conn); cap(x.r.payload) > 2*len(in)+2*firstRead {
			t.Fatalf("%d bytes are held for %d that came", cap(x.r.payload), len(in))
		}
	})
}
