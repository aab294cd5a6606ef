package behaviour

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2conn is an origin's connection of HTTP/2.
type h2conn struct {
	o       *origins
	i       int
	w       *frameWriter
	streams map[uint32]*h2request
	last    uint32
}

type h2request struct {
	rec    *recording
	entry  *record
	answer Answer
	msg    message
	done   bool // it has been answered
}

// serveH2 answers a connection that begins with HTTP/2's preface.
func (o *origins) serveH2(i int, c net.Conn, r *bufio.Reader) {
	if _, err := io.CopyN(io.Discard, r, int64(len(http2.ClientPreface))); err != nil {
		return
	}
	h := &h2conn{o: o, i: i, w: newFrameWriter(c, r), streams: map[uint32]*h2request{}}
	fr := h.w.fr
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	fr.MaxHeaderListSize = 1 << 20
	if err := h.w.do(func(fr *http2.Framer) error { return fr.WriteSettings() }); err != nil {
		return
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil || !h.take(f) {
			return
		}
	}
}

// take handles a frame and reports whether the connection goes on.
func (h *h2conn) take(f http2.Frame) bool {
	switch f := f.(type) {
	case *http2.SettingsFrame:
		return f.IsAck() || h.w.do(func(fr *http2.Framer) error { return fr.WriteSettingsAck() }) == nil
	case *http2.PingFrame:
		return f.IsAck() || h.w.do(func(fr *http2.Framer) error { return fr.WritePing(true, f.Data) }) == nil
	case *http2.MetaHeadersFrame:
		return h.fields(f)
	case *http2.DataFrame:
		q := h.streams[f.StreamID]
		if q == nil {
			return true
		}
		q.msg.body += string(f.Data())
		if n := uint32(len(f.Data())); n > 0 {
			if h.w.do(func(fr *http2.Framer) error { return fr.WriteWindowUpdate(0, n) }) != nil {
				return false
			}
		}
		return !f.StreamEnded() || h.whole(f.StreamID, q)
	case *http2.RSTStreamFrame:
		if q := h.streams[f.StreamID]; q != nil {
			q.msg.state = "reset " + f.ErrCode.String()
			q.rec.finish(q.entry, q.msg)
			delete(h.streams, f.StreamID)
		}
	}
	return true
}

func (h *h2conn) fields(f *http2.MetaHeadersFrame) bool {
	var fields []header
	pseudo := map[string]string{}
	for _, x := range f.Fields {
		if x.IsPseudo() {
			pseudo[x.Name] = x.Value
		} else {
			fields = append(fields, header{x.Name, x.Value})
		}
	}
	q := h.streams[f.StreamID]
	if q != nil {
		q.msg.trailers = fields
		return h.whole(f.StreamID, q)
	}
	h.last = f.StreamID
	q = &h2request{msg: message{start: pseudo[":method"] + " " + pseudo[":path"] + " HTTP/2", headers: fields}}
	for _, name := range []string{":authority", ":protocol", ":scheme"} {
		if v, ok := pseudo[name]; ok {
			q.msg.headers = append(q.msg.headers, header{name, v})
		}
	}
	h.streams[f.StreamID] = q
	h.o.mu.Lock()
	q.rec = h.o.cur
	h.o.mu.Unlock()
	q.entry, q.answer = q.rec.add(h.i, &q.msg)
	if q.answer.Early && !h.reply(f.StreamID, q) {
		return false
	}
	return !f.StreamEnded() || h.whole(f.StreamID, q)
}

// whole is called when the request has ended.
func (h *h2conn) whole(id uint32, q *h2request) bool {
	q.rec.finish(q.entry, q.msg)
	if q.answer.Early {
		return true
	}
	return h.reply(id, q)
}

// reply answers a request and reports whether the connection goes on.
func (h *h2conn) reply(id uint32, q *h2request) bool {
	a := &q.answer
	time.Sleep(a.Delay)
	if a.Silent || a.empty && a.Close {
		return !a.Close
	}
	if a.GoAway != "" {
		last := uint32(0) // which refuses this request
		if a.GoAway == "NO_ERROR_LAST" {
			last = h.last
		}
		if h.w.do(func(fr *http2.Framer) error {
			return fr.WriteGoAway(last, errorCodes[strings.TrimSuffix(a.GoAway, "_LAST")], nil)
		}) != nil {
			return false
		}
		if last == 0 {
			return !a.Close
		}
	}
	if a.Reset != "" && !a.ResetLate {
		return h.w.do(func(fr *http2.Framer) error { return fr.WriteRSTStream(id, errorCodes[a.Reset]) }) == nil
	}
	return h.respond(id, q) && !a.Close
}

func (h *h2conn) respond(id uint32, q *h2request) bool {
	a := &q.answer
	for _, code := range a.Interim {
		if h.w.headers(id, false, []header{{":status", strconv.Itoa(code)}, {"x-interim", strconv.Itoa(code)}}) != nil {
			return false
		}
	}
	body := fmt.Sprintf("origin%d", h.i+1)
	if a.Body != nil {
		body = *a.Body
	}
	status := a.Status
	if status == 0 {
		status = 200
	}
	fields := []header{{":status", strconv.Itoa(status)}}
	for _, x := range a.Headers {
		name, value, _ := strings.Cut(x, ":")
		fields = append(fields, header{strings.ToLower(name), strings.TrimSpace(value)})
	}
	bodyless := strings.HasPrefix(q.msg.start, "HEAD ") || body == ""
	ends := bodyless && len(a.Trailers) == 0 && a.Reset == ""
	if h.w.headers(id, ends, fields) != nil {
		return false
	}
	if !bodyless && h.w.do(func(fr *http2.Framer) error {
		return fr.WriteData(id, len(a.Trailers) == 0 && a.Reset == "", []byte(body))
	}) != nil {
		return false
	}
	if a.Reset != "" {
		time.Sleep(20 * time.Millisecond) // so that it does not overtake the response
		return h.w.do(func(fr *http2.Framer) error { return fr.WriteRSTStream(id, errorCodes[a.Reset]) }) == nil
	}
	if len(a.Trailers) == 0 {
		return true
	}
	var trailers []header
	for _, x := range a.Trailers {
		name, value, _ := strings.Cut(x, ":")
		trailers = append(trailers, header{strings.ToLower(name), strings.TrimSpace(value)})
	}
	return h.w.headers(id, true, trailers) == nil
}
