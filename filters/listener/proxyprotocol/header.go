package proxyprotocol

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

// header is a parsed PROXY protocol header.
type header struct {
	version int
	size    int // bytes that it takes on the wire
	// local is set for LOCAL, UNKNOWN and AF_UNSPEC: the socket's own
	// addresses count.
	local    bool
	src, dst netip.AddrPort
	tlvs     []byte
}

var (
	errAbsent    = errors.New("proxy_protocol: no PROXY header")
	errMalformed = errors.New("proxy_protocol: malformed PROXY header")
)

const (
	signature2 = "\r\n\r\n\x00\r\nQUIT\n"
	signature1 = "PROXY "
	maxV1      = 107
	headerV2   = 16
	maxV2      = 64<<10 - headerV2
)

// parse looks at the bytes of a connection so far. need > 0 asks for that many
// bytes in all; otherwise h or err is the answer.
func parse(b []byte) (h *header, need int, err error) {
	switch {
	case strings.HasPrefix(string(b[:min(len(b), len(signature2))]), signature2):
		return parseV2(b)
	case strings.HasPrefix(string(b[:min(len(b), len(signature1))]), signature1):
		return parseV1(b)
	case strings.HasPrefix(signature2, string(b)), strings.HasPrefix(signature1, string(b)):
		return nil, len(b) + 1, nil
	}
	return nil, 0, errAbsent
}

// parseV1 parses the text form: PROXY TCP4 src dst sport dport CRLF.
func parseV1(b []byte) (*header, int, error) {
	line := string(b[:min(len(b), maxV1)])
	i := strings.Index(line, "\r\n")
	if i < 0 {
		if len(b) >= maxV1 || strings.Contains(line[:max(len(line)-1, 0)], "\r") || strings.Contains(line, "\n") {
			return nil, 0, errMalformed
		}
		return nil, len(b) + 1, nil
	}
	h := &header{version: 1, size: i + 2}
	f := strings.Split(line[:i], " ")
	if f[1] == "UNKNOWN" {
		h.local = true
		return h, 0, nil
	}
	if len(f) != 6 || f[1] != "TCP4" && f[1] != "TCP6" {
		return nil, 0, errMalformed
	}
	var ok1, ok2 bool
	h.src, ok1 = address(f[2], f[4], f[1] == "TCP4")
	h.dst, ok2 = address(f[3], f[5], f[1] == "TCP4")
	if !ok1 || !ok2 {
		return nil, 0, errMalformed
	}
	return h, 0, nil
}

func address(ip, port string, v4 bool) (netip.AddrPort, bool) {
	a, err := netip.ParseAddr(ip)
	if err != nil || a.Is4() != v4 || a.Zone() != "" {
		return netip.AddrPort{}, false
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil || len(port) > 1 && port[0] == '0' || port[0] == '+' {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), true
}

// parseV2 parses the binary form.
func parseV2(b []byte) (*header, int, error) {
	if len(b) < headerV2 {
		return nil, headerV2, nil
	}
	command, family, n := b[12], b[13], int(binary.BigEndian.Uint16(b[14:]))
	if command>>4 != 2 || command&15 > 1 || n > maxV2 {
		return nil, 0, errMalformed
	}
	if len(b) < headerV2+n {
		return nil, headerV2 + n, nil
	}
	h := &header{version: 2, size: headerV2 + n}
	body := b[headerV2 : headerV2+n]
	if command&15 == 0 { // LOCAL: everything else is to be skipped
		h.local = true
		return h, 0, nil
	}
	var used int
	switch family {
	case 0x00: // AF_UNSPEC
		h.local = true
	case 0x11, 0x12: // TCP or UDP over IPv4
		if used = 12; n < used {
			return nil, 0, errMalformed
		}
		h.src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(body[0:4])), binary.BigEndian.Uint16(body[8:]))
		h.dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(body[4:8])), binary.BigEndian.Uint16(body[10:]))
	case 0x21, 0x22: // over IPv6
		if used = 36; n < used {
			return nil, 0, errMalformed
		}
		h.src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(body[0:16])).Unmap(), binary.BigEndian.Uint16(body[32:]))
		h.dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(body[16:32])).Unmap(), binary.BigEndian.Uint16(body[34:]))
	default:
		return nil, 0, errMalformed
	}
	h.tlvs = body[used:]
	if family == 0 {
		h.tlvs = nil
		return h, 0, nil
	}
	for t := h.tlvs; len(t) > 0; {
		_, _, rest, ok := nextTLV(t)
		if !ok {
			return nil, 0, errMalformed
		}
		t = rest
	}
	return h, 0, nil
}

// nextTLV splits the first TLV off b.
func nextTLV(b []byte) (kind uint8, value, rest []byte, ok bool) {
	if len(b) < 3 {
		return 0, nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b[1:]))
	if len(b) < 3+n {
		return 0, nil, nil, false
	}
	return b[0], b[3 : 3+n], b[3+n:], true
}
