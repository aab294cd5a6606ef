package rego

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/fairlead-mesh/fairlead/internal/message"
)

// maxDescriptorBytes bounds a file of descriptors.
const maxDescriptorBytes = 16 << 20

// grpcMethods are the messages of methods by path, "/package.Service/Method".
// A method whose client streams is nil.
type grpcMethods map[string]protoreflect.MessageDescriptor

// methods reads the descriptors that c names; nil if there are none.
func (c *config) methods() (grpcMethods, error) {
	b := c.descriptors
	if c.descriptorFile != "" {
		var err error
		if b, err = readBounded(c.descriptorFile, maxDescriptorBytes); err != nil {
			return nil, err
		}
	}
	if len(b) == 0 && c.descriptorFile == "" {
		return nil, nil
	}
	return readMethods(b)
}

// readMethods reads a FileDescriptorSet.
func readMethods(b []byte) (grpcMethods, error) {
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(b, &set); err != nil {
		return nil, fmt.Errorf("not a FileDescriptorSet: %w", err)
	}
	files, err := protodesc.NewFiles(&set)
	if err != nil {
		return nil, fmt.Errorf("%w (was it made with --include_imports?)", err)
	}
	out := grpcMethods{}
	files.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for k := range s.Methods().Len() {
				m := s.Methods().Get(k)
				var input protoreflect.MessageDescriptor
				if !m.IsStreamingClient() {
					input = m.Input()
				}
				out["/"+string(s.FullName())+"/"+string(m.Name())] = input
			}
		}
		return true
	})
	if len(out) == 0 {
		return nil, errors.New("no service in it")
	}
	return out, nil
}

// parseGRPC makes parsed_body of the one message of a call, as opa-envoy-plugin
// does: null if the method is not known or its client streams. What hides the
// message from the policy but not from the server is an error.
func (m grpcMethods) parseGRPC(h *message.Header, b requestBody, limit int) (v *ast.Term, truncated bool, err error) {
	null := ast.InternedNullTerm
	path, _, _ := strings.Cut(h.Get(message.Path), "?")
	if strings.Count(path, "/") != 2 {
		return nil, false, fmt.Errorf("%q is no path of gRPC", path)
	}
	input, ok := m[path]
	switch {
	case !ok || input == nil:
		return null, b.truncated, nil
	case len(b.bytes) < 5:
		if b.truncated {
			return null, true, nil
		}
		return nil, false, errors.New("gRPC message of less than 5 bytes")
	}
	size := uint64(binary.BigEndian.Uint32(b.bytes[1:5]))
	data := b.bytes[5:]
	switch {
	case size > uint64(len(data)) && b.truncated:
		return null, true, nil
	case size > uint64(len(data)):
		return nil, false, errors.New("gRPC message ends early")
	case size < uint64(len(data)) || b.truncated:
		return nil, false, errors.New("more than one gRPC message")
	}
	switch b.bytes[0] {
	case 0:
	case 1:
		if data, err = decompressGRPC(h, data, limit); err != nil {
			return nil, false, err
		}
	default:
		return nil, false, errors.New("gRPC message with unknown flags")
	}
	msg := dynamicpb.NewMessage(input)
	if err := proto.Unmarshal(data, msg); err != nil {
		return nil, false, fmt.Errorf("gRPC message: %w", err)
	}
	js, err := protojson.Marshal(msg)
	if err != nil {
		return nil, false, fmt.Errorf("gRPC message: %w", err)
	}
	value, err := parseJSON(js)
	if err != nil {
		return nil, false, fmt.Errorf("gRPC message: %w", err)
	}
	return ast.NewTerm(value), false, nil
}

func decompressGRPC(h *message.Header, data []byte, limit int) ([]byte, error) {
	if coding := h.Get("grpc-encoding"); coding != "gzip" {
		return nil, fmt.Errorf("gRPC message is compressed by %q: only gzip can be read", coding)
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("gRPC message: %w", err)
	}
	out, err := io.ReadAll(io.LimitReader(z, int64(limit)+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("gRPC message: %w", err)
	case len(out) > limit:
		return nil, errTooLarge
	}
	return out, nil
}
