package abuse

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/net/http2/hpack"
)

// Frame types and flags of RFC 9113.
const (
	tData         = 0
	tHeaders      = 1
	tPriority     = 2
	tRST          = 3
	tSettings     = 4
	tPing         = 6
	tWindowUpdate = 8
	tContinuation = 9
	tUnknown      = 0xfe

	endStream  = 0x1
	endHeaders = 0x4
)

// frame appends one frame.
func frame(b []byte, typ, flags byte, stream uint32, payload []byte) []byte {
	b = append(b, byte(len(payload)>>16), byte(len(payload)>>8), byte(len(payload)), typ, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

func u32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// setting is the payload of a SETTINGS frame with one value.
func setting(id uint16, v uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(nil, id), v)
}

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// request encodes a request's head without using the dynamic table. more may
// begin with a method.
func request(path string, more ...string) []byte {
	method := "GET"
	if len(more) > 1 && more[0] == ":method" {
		method, more = more[1], more[2:]
	}
	fs := [][2]string{{":method", method}, {":scheme", "http"}, {":authority", "victim"}, {":path", path}}
	for i := 0; i+1 < len(more); i += 2 {
		fs = append(fs, [2]string{more[i], more[i+1]})
	}
	return encodeHead(fs)
}

// encodeHead encodes a head without using the dynamic table.
func encodeHead(fs [][2]string) []byte {
	var buf bytes.Buffer
	e := hpack.NewEncoder(&buf)
	e.SetMaxDynamicTableSizeLimit(0)
	for _, f := range fs {
		_ = e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return buf.Bytes()
}
