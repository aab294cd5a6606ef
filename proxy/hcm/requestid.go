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
	var b [36]byte
	j := 0
	for i := range 32 {
		if i == 8 || i == 12 || i == 16 || i == 20 {
			b[j] = '-'
			j++
		}
		var n uint64
		if i < 16 {
			n = hi >> (60 - 4*i) & 15
		} else {
			n = lo >> (60 - 4*(i-16)) & 15
		}
		switch i {
		case 12:
			n = 4
		case 16:
			n = 8 | n&3
		}
		b[j] = hexDigits[n]
		j++
	}
	return append(dst, b[:]...)
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
		has = true
	}
	if has {
		st.s.Info.RequestID = id
	}
}
