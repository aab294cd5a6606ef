package hcm

import "math/rand/v2"

const hexDigits = "0123456789abcdef"

// Trace reasons in a request id: the 15th character of the UUID (Envoy's
// UuidRequestIdExtension).
const (
	traceNone    = '4'
	traceSampled = '9'
	traceForced  = 'a'
	traceClient  = 'b'
)

// newRequestID appends a random version 4 UUID.
func newRequestID(dst []byte) []byte {
	hi, lo := rand.Uint64(), rand.Uint64()
	hi = hi&^(15<<12) | 4<<12
	lo = lo&^(3<<62) | 2<<62
	var b [36]byte
	hexBytes(b[0:8], hi>>32)
	b[8] = '-'
	hexBytes(b[9:13], hi>>16)
	b[13] = '-'
	hexBytes(b[14:18], hi)
	b[18] = '-'
	hexBytes(b[19:23], lo>>48)
	b[23] = '-'
	hexBytes(b[24:36], lo)
	return append(dst, b[:]...)
}

// hexBytes fills b with the lowest digits of n.
func hexBytes(b []byte, n uint64) {
	for i := len(b) - 1; i > 0; i -= 2 {
		b[i], b[i-1] = hexDigits[n&15], hexDigits[n>>4&15]
		n >>= 8
	}
}

// setRequestID generates x-request-id for edge requests (unless an external
// one is kept) and where there is none.
func (st *stream) setRequestID(edge bool) {
	spec := st.m.spec
	id, has := st.s.Request.Lookup("x-request-id")
	if spec.GenerateRequestID && (!has || edge && !spec.PreserveExternalRequestID) {
		var b [36]byte
		id = st.s.Request.Intern(newRequestID(b[:0]))
		st.s.Request.Set("x-request-id", id)
		has, st.s.OwnRequestID = true, true
	}
	if has {
		st.s.Info.RequestID = id
	}
}
