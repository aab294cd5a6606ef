package h2

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

const fairTotal = 12 << 20

// Streams that have more to send than the connection takes get equal shares of
// it, and one that comes later does not wait for what the others have. A system
// that has other things to do may keep one of the goroutines waiting: that is not
// so ten times.
func TestStreamsOfAConnectionGetFairShares(t *testing.T) {
	for try := 1; ; try++ {
		least, most, waited := sharesOfAConnection(t)
		t.Logf("shares from %d to %d KiB; the late stream waited for %d KiB of others", least>>10, most>>10, waited>>10)
		if least >= most/2 && waited >= 0 && waited <= fairTotal/4 { // its handler must be scheduled first
			return
		}
		if try == 10 {
			t.Fatal("that is not fair")
		}
	}
}

// sharesOfAConnection returns the octets that of eight streams the ones got that
// got least and most, and those that came before an answer asked for in the middle,
// -1 if it did not come.
func sharesOfAConnection(t *testing.T) (least, most, waited int) {
	t.Helper()
	const streams, total = 8, fairTotal
	a, b := netio.Pipe(clientAddr, serverAddr)
	h := &handlerFunc{f: func(s transport.ServerStream) {
		var h message.Header
		s.ReadHeaders(&h)
		if h.Get(message.Path) == "/small" {
			_ = s.WriteHeaders(header(":status", "200"), false)
			_ = s.WriteData([]byte("small"), true)
			return
		}
		if s.WriteHeaders(header(":status", "200"), false) != nil {
			return
		}
		for chunk := make([]byte, 32<<10); s.WriteData(chunk, false) == nil; {
		}
	}}
	s := NewServer(b, &transport.ServerConfig{}, h)
	done := make(chan struct{})
	go s.Serve(func() { close(done) })
	defer func() {
		_ = a.Close()
		deadline(t, done, "the connection did not end")
	}()
	if _, err := a.Write([]byte(preface)); err != nil {
		t.Fatal(err)
	}
	fr := http2.NewFramer(a, a)
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	ask := func(id uint32, path string) {
		block.Reset()
		for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "a"}, {":path", path}} {
			_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		if err := fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true}); err != nil {
			t.Fatal(err)
		}
	}
	_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	_ = fr.WriteWindowUpdate(0, 1<<30)
	for i := range uint32(streams) {
		ask(2*i+1, "/")
	}
	const late = 2*streams + 1
	got := map[uint32]int{}
	sum, asked := 0, 0
	waited = -1
	for sum < total {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		d, ok := f.(*http2.DataFrame)
		if !ok {
			continue
		}
		if d.StreamID == late {
			waited = sum - asked
			continue
		}
		if sum>>16 != (sum+len(d.Data()))>>16 {
			time.Sleep(200 * time.Microsecond) // the client is what is slow
		}
		got[d.StreamID] += len(d.Data())
		sum += len(d.Data())
		if asked == 0 && sum > total/2 {
			asked = sum
			ask(late, "/small")
		}
	}
	least = total
	for i := range uint32(streams) {
		least, most = min(least, got[2*i+1]), max(most, got[2*i+1])
	}
	return least, most, waited
}
