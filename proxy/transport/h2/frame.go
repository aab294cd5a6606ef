package h2

import "fmt"

// preface is what a client sends first (RFC 9113 section 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// frameType is a frame's type octet (RFC 9113 section 6).
type frameType uint8

const (
	frameData         frameType = 0
	frameHeaders      frameType = 1
	framePriority     frameType = 2
	frameRSTStream    frameType = 3
	frameSettings     frameType = 4
	framePushPromise  frameType = 5
	framePing         frameType = 6
	frameGoAway       frameType = 7
	frameWindowUpdate frameType = 8
	frameContinuation frameType = 9
)

const (
	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

const (
	frameHeaderLen  = 9
	minMaxFrameSize = 16 << 10
	maxMaxFrameSize = 1<<24 - 1
	maxWindow       = 1<<31 - 1
	// defaultWindow is the flow-control window both sides start with.
	defaultWindow = 65535
	maxStreamID   = 1<<31 - 1
)

// Identifiers of settings (RFC 9113 section 6.5.2, RFC 8441 section 3).
const (
	settingHeaderTableSize      = 1
	settingEnablePush           = 2
	settingMaxConcurrentStreams = 3
	settingInitialWindowSize    = 4
	settingMaxFrameSize         = 5
	settingMaxHeaderListSize    = 6
	settingEnableConnect        = 8
)

// errCode is an RFC 9113 section 7 error code.
type errCode uint32

const (
	codeNo                 errCode = 0x0
	codeProtocol           errCode = 0x1
	codeInternal           errCode = 0x2
	codeFlowControl        errCode = 0x3
	codeSettingsTimeout    errCode = 0x4
	codeStreamClosed       errCode = 0x5
	codeFrameSize          errCode = 0x6
	codeRefusedStream      errCode = 0x7
	codeCancel             errCode = 0x8
	codeCompression        errCode = 0x9
	codeConnect            errCode = 0xa
	codeEnhanceYourCalm    errCode = 0xb
	codeInadequateSecurity errCode = 0xc
	codeHTTP11Required     errCode = 0xd
)

var codeNames = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
	"STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR",
	"CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

func (c errCode) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("error code %#x", uint32(c))
}

// connError ends the connection with GOAWAY(code). details is Envoy's response
// code detail for it.
type connError struct {
	code    errCode
	details string
	msg     string
}

func (e *connError) Error() string {
	return "http/2 connection error " + e.code.String() + ": " + e.msg
}

func protocolError(msg string) *connError {
	return &connError{codeProtocol, "http2.protocol_error", msg}
}

func flood(details, msg string) *connError {
	return &connError{codeEnhanceYourCalm, details, msg}
}

func appendFrameHeader(b []byte, n int, t frameType, flags uint8, id uint32) []byte {
	return append(b, byte(n>>16), byte(n>>8), byte(n), byte(t), flags,
		byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func putFrameHeader(b []byte, n int, t frameType, flags uint8, id uint32) {
	_ = b[8]
	b[0], b[1], b[2], b[3], b[4] = byte(n>>16), byte(n>>8), byte(n), byte(t), flags
	b[5], b[6], b[7], b[8] = byte(id>>24), byte(id>>16), byte(id>>8), byte(id)
}

func be32(b []byte) uint32 {
	_ = b[3]
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func appendBE32(b []byte, v uint32) []byte {
	return append(b, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

func appendWindowUpdate(b []byte, id, inc uint32) []byte {
	return appendBE32(appendFrameHeader(b, 4, frameWindowUpdate, 0, id), inc)
}

func appendRSTStream(b []byte, id uint32, code errCode) []byte {
	return appendBE32(appendFrameHeader(b, 4, frameRSTStream, 0, id), uint32(code))
}

func appendSetting(b []byte, id uint16, v uint32) []byte {
	return appendBE32(append(b, byte(id>>8), byte(id)), v)
}

func appendGoAway(b []byte, last uint32, code errCode, debug string) []byte {
	b = appendFrameHeader(b, 8+len(debug), frameGoAway, 0, 0)
	b = appendBE32(appendBE32(b, last), uint32(code))
	return append(b, debug...)
}

func appendPing(b []byte, flags uint8, data []byte) []byte {
	return append(appendFrameHeader(b, 8, framePing, flags, 0), data[:8]...)
}
