package h2

// closedHow says how a stream left the table; what may still arrive for it
// depends on that (RFC 9113 section 5.1).
type closedHow uint8

const (
	closedUnknown closedHow = iota
	// closedInOrder: both sides sent END_STREAM.
	closedInOrder
	// closedByPeer: the peer sent RST_STREAM.
	closedByPeer
	// closedByUs: this side sent RST_STREAM; frames may still be under way.
	closedByUs
)

const closedKept = 64

// closedIDs remembers the streams that were closed last.
type closedIDs struct {
	ring *[closedKept]uint64 // id<<2 | how, allocated with the first stream
	n    uint64
}

func (r *closedIDs) add(id uint32, how closedHow) {
	if r.ring == nil {
		r.ring = new([closedKept]uint64)
	}
	r.ring[r.n%closedKept] = uint64(id)<<2 | uint64(how)
	r.n++
}

// resetByPeer notes that the peer has sent RST_STREAM for a stream that was
// closed by this side: nothing of it is under way any more.
func (r *closedIDs) resetByPeer(id uint32) {
	for i := range min(r.n, closedKept) {
		if r.ring[i] == uint64(id)<<2|uint64(closedByUs) {
			r.ring[i] = uint64(id)<<2 | uint64(closedByPeer)
		}
	}
}

// find returns how id was closed. certain is false if it may have been closed
// and forgotten.
func (r *closedIDs) find(id uint32) (how closedHow, certain bool) {
	for i := range min(r.n, closedKept) {
		if v := r.ring[i]; uint32(v>>2) == id {
			return closedHow(v & 3), true
		}
	}
	return closedUnknown, r.n <= closedKept
}
