package bypass

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// client sends requests that no library would, one at a time, over a connection
// that it renews when it was closed.
type client struct {
	address string
	c       net.Conn
	br      *bufio.Reader
	// of HTTP/2
	fr   *http2.Framer
	next uint32
	enc  *hpack.Encoder
	head bytes.Buffer
}

func (c *client) close() {
	if c.c != nil {
		_ = c.c.Close()
		c.c = nil
	}
}

func (c *client) open() error {
	if c.c != nil {
		return nil
	}
	var err error
	if c.c, err = net.Dial("tcp", c.address); err != nil {
		c.c = nil
		return err
	}
	c.br = bufio.NewReader(c.c)
	return nil
}

// http1 sends head (without the empty line) and returns status and body;
// status 0 is a connection closed without an answer.
func (c *client) http1(head string) (status int, body []byte, err error) {
	var req *http.Request
	if strings.HasPrefix(head, "HEAD ") {
		req = &http.Request{Method: http.MethodHead}
	}
	for range 2 { // an idle connection may have been closed
		fresh := c.c == nil
		if err = c.open(); err != nil {
			return 0, nil, err
		}
		_ = c.c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err = io.WriteString(c.c, head+"\r\n"); err == nil {
			var resp *http.Response
			if resp, err = http.ReadResponse(c.br, req); err == nil {
				body, err = io.ReadAll(resp.Body)
				if resp.Close || err != nil {
					c.close()
				}
				return resp.StatusCode, body, err
			}
		}
		c.close()
		if fresh {
			break
		}
	}
	return 0, nil, nil
}

// http2 sends one stream; status 0 is a reset.
func (c *client) http2(fields [][2]string) (status string, body []byte, err error) {
	if c.c == nil {
		if err := c.open(); err != nil {
			return "", nil, err
		}
		c.fr, c.next = http2.NewFramer(c.c, c.br), 1
		c.enc = hpack.NewEncoder(&c.head)
		if _, err := io.WriteString(c.c, http2.ClientPreface); err != nil {
			return "", nil, err
		}
		if err := c.fr.WriteSettings(); err != nil {
			return "", nil, err
		}
		c.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	}
	_ = c.c.SetDeadline(time.Now().Add(10 * time.Second))
	c.head.Reset()
	for _, f := range fields {
		_ = c.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	id := c.next
	c.next += 2
	if err := c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.head.Bytes(), EndStream: true, EndHeaders: true}); err != nil {
		c.close()
		return "0", nil, nil
	}
	for {
		f, err := c.fr.ReadFrame()
		if err != nil {
			c.close()
			return "0", body, nil
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = c.fr.WriteSettingsAck()
			}
		case *http2.PingFrame:
			_ = c.fr.WritePing(true, f.Data)
		case *http2.MetaHeadersFrame:
			if f.StreamID == id {
				status = f.PseudoValue("status")
			}
			if f.StreamID == id && f.StreamEnded() {
				return status, body, nil
			}
		case *http2.DataFrame:
			if f.StreamID == id {
				body = append(body, f.Data()...)
				_ = c.fr.WriteWindowUpdate(0, max(1, uint32(len(f.Data())))) //nolint:gosec // small
			}
			if f.StreamID == id && f.StreamEnded() {
				return status, body, nil
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return "0", body, nil
			}
		case *http2.GoAwayFrame:
			if f.LastStreamID < id {
				c.close()
				return "0", body, nil
			}
		}
	}
}
