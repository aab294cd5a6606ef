package ztunnel

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/hbone"
)

// SOCKS5 replies, RFC 1928 section 6.
const (
	socksOK          = 0
	socksFailure     = 1
	socksNotAllowed  = 2
	socksNetwork     = 3
	socksHost        = 4
	socksRefused     = 5
	socksCommand     = 7
	socksAddressType = 8
)

// socksError is a request that is answered with a reply and not served.
type socksError struct {
	reply byte
	text  string
}

func (e *socksError) Error() string { return "socks5: " + e.text }

// limited bounds how long a client may take to say what it wants; the returned
// function ends the limit and reports whether it was kept.
func limited(c netio.Conn) (kept func() bool) {
	return time.AfterFunc(handshakeTimeout, func() { c.Interrupt(errHandshake) }).Stop
}

func readFull(c netio.Conn, p []byte) error {
	_, err := io.ReadFull(c, p)
	return err
}

// socksGreet reads the client's methods and its request. A *socksError is to be
// answered with its reply.
func socksGreet(c netio.Conn) (host string, port uint16, err error) {
	var b [256]byte
	if err := readFull(c, b[:2]); err != nil {
		return "", 0, err
	}
	if b[0] != 5 {
		return "", 0, errors.New("socks5: the client speaks another protocol")
	}
	n := int(b[1])
	if err := readFull(c, b[:n]); err != nil {
		return "", 0, err
	}
	if bytes.IndexByte(b[:n], 0) < 0 {
		_, _ = c.Write([]byte{5, 0xff})
		return "", 0, errors.New("socks5: the client insists on authentication")
	}
	if _, err := c.Write([]byte{5, 0}); err != nil {
		return "", 0, err
	}
	return socksRequest(c, &b)
}

func socksRequest(c netio.Conn, b *[256]byte) (host string, port uint16, err error) {
	if err := readFull(c, b[:4]); err != nil {
		return "", 0, err
	}
	if b[0] != 5 {
		return "", 0, &socksError{socksFailure, "bad version in the request"}
	}
	command, kind := b[1], b[3]
	var n int
	switch kind {
	case 1:
		n = 4
	case 4:
		n = 16
	case 3:
		if err := readFull(c, b[:1]); err != nil {
			return "", 0, err
		}
		n = int(b[0])
	default:
		return "", 0, &socksError{socksAddressType, "unknown address type"}
	}
	if err := readFull(c, b[:n]); err != nil {
		return "", 0, err
	}
	if kind == 3 {
		host = strings.ToLower(strings.TrimSuffix(string(b[:n]), "."))
	} else {
		a, _ := netip.AddrFromSlice(b[:n])
		host = a.Unmap().String()
	}
	if err := readFull(c, b[:2]); err != nil {
		return "", 0, err
	}
	port = uint16(b[0])<<8 | uint16(b[1])
	if command != 1 {
		return "", 0, &socksError{socksCommand, "only CONNECT is supported"}
	}
	if _, _, err := splitAuthority(joinHost(host, port)); err != nil {
		return "", 0, &socksError{socksFailure, err.Error()}
	}
	return host, port, nil
}

func joinHost(host string, port uint16) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(int(port))
}

func socksReply(c netio.Conn, code byte) error {
	_, err := c.Write([]byte{5, code, 0, 1, 0, 0, 0, 0, 0, 0})
	return err
}

// socksCode is the reply that tells an application why open failed.
func socksCode(err error) byte {
	var status *hbone.StatusError
	var name *nameError
	switch {
	case errors.As(err, &status):
		switch status.Status {
		case 401, 403:
			return socksNotAllowed
		case 503:
			return socksRefused
		}
		return socksFailure
	case errors.Is(err, errRecursive):
		return socksNotAllowed
	case errors.Is(err, syscall.ECONNREFUSED):
		return socksRefused
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, errOtherNetwork):
		return socksNetwork
	case errors.As(err, &name), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ETIMEDOUT),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, errNoHealthy):
		return socksHost
	}
	return socksFailure
}

func (z *Ztunnel) serveSOCKS(ctx context.Context, c netio.Conn) {
	defer z.untrack(c)
	kept := limited(c)
	host, port, err := socksGreet(c)
	if err != nil || !kept() {
		kept()
		if se, ok := errors.AsType[*socksError](err); ok {
			_ = socksReply(c, se.reply)
		}
		z.refused(c, err)
		return
	}
	up, f, err := z.open(ctx, c.RemoteAddr(), host, port)
	if err != nil {
		_ = socksReply(c, socksCode(err))
		_ = c.Close()
		return
	}
	if err := socksReply(c, socksOK); err != nil {
		up.Reset()
		c.Reset()
		f.end(0, 0, err)
		return
	}
	z.relay(c, up, f)
}

// refused closes a client that did not come to ask for something.
func (z *Ztunnel) refused(c netio.Conn, err error) {
	src := c.RemoteAddr()
	_ = c.Close()
	if err == nil {
		err = errHandshake
	}
	if !errors.Is(err, io.EOF) {
		z.log.Warn("connection failed", "src.addr", src.String(), "direction", "outbound", "error", err.Error())
	}
}

const maxHead = 16 << 10

// readHead reads an HTTP/1 request head; rest is what came after it.
func readHead(c netio.Conn) (r *http.Request, rest []byte, err error) {
	buf := make([]byte, 0, 1024)
	for {
		if i := bytes.Index(buf, []byte("\r\n\r\n")); i >= 0 {
			r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(buf[:i+4])))
			return r, buf[i+4:], err
		}
		if len(buf) >= maxHead {
			return nil, nil, errors.New("the request's head is too long")
		}
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := c.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if err != nil {
			return nil, nil, err
		}
	}
}

// connectStatus is the status that tells an application why open failed.
func connectStatus(err error) int {
	switch code := socksCode(err); {
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	case code == socksNotAllowed:
		return http.StatusForbidden
	case code == socksRefused, code == socksHost, code == socksNetwork:
		return http.StatusServiceUnavailable
	}
	return http.StatusBadGateway
}

func answer(c netio.Conn, status int, text string) {
	_, _ = c.Write([]byte("HTTP/1.1 " + strconv.Itoa(status) + " " + http.StatusText(status) +
		"\r\ncontent-type: text/plain\r\ncontent-length: " + strconv.Itoa(len(text)) + "\r\nconnection: close\r\n\r\n" + text))
	_ = c.Close()
}

func (z *Ztunnel) serveConnect(ctx context.Context, c netio.Conn) {
	defer z.untrack(c)
	kept := limited(c)
	r, rest, err := readHead(c)
	if !kept() || err != nil {
		z.refused(c, err)
		return
	}
	if r.Method != http.MethodConnect {
		answer(c, http.StatusMethodNotAllowed, "this is a proxy for CONNECT only\n")
		return
	}
	host, port, err := splitAuthority(r.RequestURI)
	if err != nil || r.ContentLength > 0 || len(r.TransferEncoding) > 0 {
		answer(c, http.StatusBadRequest, "CONNECT needs host:port and no body\n")
		return
	}
	up, f, err := z.open(ctx, c.RemoteAddr(), host, port)
	if err != nil {
		answer(c, connectStatus(err), err.Error()+"\n")
		return
	}
	if _, err := c.Write([]byte("HTTP/1.1 200 OK\r\n\r\n")); err != nil {
		up.Reset()
		c.Reset()
		f.end(0, 0, err)
		return
	}
	z.relay(netio.WithPrefix(c, rest), up, f)
}

// forwarder serves a port that leads to one destination, valid since check.
func (z *Ztunnel) forwarder(destination string) func(context.Context, netio.Conn) {
	host, port, _ := splitAuthority(destination)
	return func(ctx context.Context, c netio.Conn) {
		defer z.untrack(c)
		up, f, err := z.open(ctx, c.RemoteAddr(), host, port)
		if err != nil {
			c.Reset()
			return
		}
		z.relay(c, up, f)
	}
}
