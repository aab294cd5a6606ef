package peers

import (
	"encoding/binary"
	"strings"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Istio's metadata exchange over a connection: both sides begin with a frame of
// a magic number, the length of what follows, both big endian, and an Any with a
// Struct, in which the header's Struct is one field.
const (
	// FrameHead is the size of magic number and length.
	FrameHead = 8
	// MaxFrame bounds what is read of a frame's payload; of a longer one nothing
	// is.
	MaxFrame = 64 << 10

	frameMagic = 0x3D230467
	structType = "type.googleapis.com/google.protobuf.Struct"
	fieldPeer  = "x-envoy-peer-metadata"
	fieldID    = "x-envoy-peer-metadata-id"
)

// Frame is what this side begins with: it describes p, whose node has an id. It
// is nil if p can't be told.
func Frame(p *streaminfo.Peer, id string) []byte {
	m := &structpb.Struct{Fields: map[string]*structpb.Value{fieldPeer: structpb.NewStructValue(exchanged(p))}}
	if id != "" {
		m.Fields[fieldID] = structpb.NewStringValue(id)
	}
	inner, err := marshal(m)
	if err != nil {
		return nil // a label that is not UTF-8
	}
	payload, err := marshal(&anypb.Any{TypeUrl: structType, Value: inner})
	if err != nil {
		return nil
	}
	b := make([]byte, 0, FrameHead+len(payload))
	b = binary.BigEndian.AppendUint32(b, frameMagic)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// FrameLength reads a frame's head of FrameHead bytes. ok is false if it is none.
func FrameLength(head []byte) (n uint32, ok bool) {
	if binary.BigEndian.Uint32(head) != frameMagic {
		return 0, false
	}
	return binary.BigEndian.Uint32(head[4:]), true
}

var framePeers table

// FromFrame describes the peer by the payload of its frame. ok is false if that
// is malformed or too large, p nil if it describes nobody. labels are kept in
// Peer.Labels. Equal descriptions give the same Peer.
func FromFrame(payload []byte, labels []string) (p *streaminfo.Peer, ok bool) {
	a, m := &anypb.Any{}, &structpb.Struct{}
	if len(payload) > MaxFrame || unmarshal(payload, a) != nil || a.GetTypeUrl() != structType || unmarshal(a.GetValue(), m) != nil {
		return nil, false
	}
	s := m.GetFields()[fieldPeer].GetStructValue()
	if s == nil {
		return nil, true
	}
	p = FromStruct(s.AsMap(), labels)
	// Frames of one workload differ in what nobody reads, so the table is kept by
	// what was.
	key := Exchange(p)
	if key == "" || len(key) > maxExchange {
		return p, true
	}
	return framePeers.intern(strings.Join(labels, ",")+"|"+key, func(string) *streaminfo.Peer { return p }), true
}
