package rego

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/fairlead-mesh/fairlead/filters"
)

// descriptors describe shop.Orders: Put takes one message, Upload a stream.
func descriptors(t testing.TB) []byte {
	t.Helper()
	field := func(name string, n int32, typ descriptorpb.FieldDescriptorProto_Type, label descriptorpb.FieldDescriptorProto_Label) *descriptorpb.FieldDescriptorProto {
		return &descriptorpb.FieldDescriptorProto{Name: &name, Number: &n, Type: &typ, Label: &label}
	}
	method := func(name string, stream bool) *descriptorpb.MethodDescriptorProto {
		return &descriptorpb.MethodDescriptorProto{Name: &name, InputType: new(".shop.Order"), OutputType: new(".shop.Order"), ClientStreaming: &stream}
	}
	b, err := proto.Marshal(&descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{{
		Name: new("shop.proto"), Package: new("shop"), Syntax: new("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{{Name: new("Order"), Field: []*descriptorpb.FieldDescriptorProto{
			field("user_name", 1, descriptorpb.FieldDescriptorProto_TYPE_STRING, descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL),
			field("items", 2, descriptorpb.FieldDescriptorProto_TYPE_INT32, descriptorpb.FieldDescriptorProto_LABEL_REPEATED),
		}}},
		Service: []*descriptorpb.ServiceDescriptorProto{{Name: new("Orders"), Method: []*descriptorpb.MethodDescriptorProto{method("Put", false), method("Upload", true)}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// frame is a gRPC message.
func frame(flags byte, data string) string {
	return string(binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(data)))) + data
}

func zipped(t testing.TB, s string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write([]byte(s))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestMessagesOfGRPCBecomeTheParsedBody(t *testing.T) {
	order := string(protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "ann")) +
		string(protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), []byte{3, 4}))
	ann := map[string]any{"userName": "ann", "items": []any{number("3"), number("4")}}
	inline := `"protoDescriptorInline":"` + base64.StdEncoding.EncodeToString(descriptors(t)) + `","maxRequestBytes":200,"failureModeAllow":true`
	for _, tt := range []struct {
		name, path, coding, body string
		more                     string
		want                     any
		truncated                bool
		status                   int // 0: it is a document
	}{
		{name: "a message", path: "/shop.Orders/Put", body: frame(0, order), want: ann},
		{name: "a message without fields", path: "/shop.Orders/Put", body: frame(0, ""), want: map[string]any{}},
		{name: "no message", path: "/shop.Orders/Put"},
		{name: "a compressed message", path: "/shop.Orders/Put", coding: "gzip", body: frame(1, zipped(t, order)), want: ann},
		{name: "an unknown coding hides the message", path: "/shop.Orders/Put", coding: "zstd", body: frame(1, order), status: 400},
		{name: "a coding that nobody names", path: "/shop.Orders/Put", body: frame(1, zipped(t, order)), status: 400},
		{name: "a compressed message that is not", path: "/shop.Orders/Put", coding: "gzip", body: frame(1, order), status: 400},
		{name: "a compressed message that is large", path: "/shop.Orders/Put", coding: "gzip", body: frame(1, zipped(t, strings.Repeat("a", 1000))), status: 413},
		{name: "unknown flags", path: "/shop.Orders/Put", body: frame(2, order), status: 400},
		{name: "two messages", path: "/shop.Orders/Put", body: frame(0, order) + frame(0, order), status: 400},
		{name: "a message that ends early", path: "/shop.Orders/Put", body: frame(0, order)[:8], status: 400},
		{name: "not even a length", path: "/shop.Orders/Put", body: "\x00\x00", status: 400},
		{name: "a message of another type", path: "/shop.Orders/Put", body: frame(0, "\xff\xff\xff"), status: 400},
		{name: "text that is not UTF-8", path: "/shop.Orders/Put", body: frame(0, "\x0a\x01\xff"), status: 400},
		{name: "a stream", path: "/shop.Orders/Upload", body: frame(0, order)},
		{name: "a method that is not described", path: "/shop.Orders/Get", body: frame(0, order)},
		{name: "a service that is not described", path: "/shop.Other/Put", body: frame(0, order)},
		{name: "a method in other letters", path: "/shop.orders/put", body: frame(0, order)},
		{name: "too many segments", path: "/shop.Orders/Put/x", body: frame(0, order), status: 400},
		{name: "too few segments", path: "/shop.Orders", body: frame(0, order), status: 400},
		{name: "a query after the method", path: "/shop.Orders/Put?x", body: frame(0, order), want: ann},
		{name: "a large message", path: "/shop.Orders/Put", body: frame(0, strings.Repeat("a", 300)), status: 413},
		{name: "a large message, cut", path: "/shop.Orders/Put", body: frame(0, strings.Repeat("a", 300)), more: `,"bodyOverflow":"TRUNCATE"`, truncated: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := compileJSON(t, env(), conf(readsAll, inline+tt.more), "").(*filter)
			r := request{method: "POST", path: tt.path, header: [][2]string{{"content-type", "application/grpc+proto"}}}
			if tt.coding != "" {
				r.header = append(r.header, [2]string{"grpc-encoding", tt.coding})
			}
			if tt.body != "" {
				r.body = []string{tt.body}
			}
			if tt.status != 0 {
				if u, res := run(t, f, r.stream()); u.called || res.Status() != tt.status {
					t.Errorf("passed %v, status %d", u.called, res.Status())
				}
				return
			}
			in, err := inputOf(f, r)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, at(in, "parsed_body")); diff != "" || at(in, "truncated_body") != tt.truncated {
				t.Errorf("truncated %v, parsed_body (-want +got):\n%s", at(in, "truncated_body"), diff)
			}
			if u, _ := run(t, f, r.stream()); u.body != tt.body {
				t.Errorf("upstream read %q", u.body)
			}
		})
	}
}

func TestDescriptorsOfAFile(t *testing.T) {
	dir := t.TempDir()
	for name, b := range map[string][]byte{"good": descriptors(t), "garbage": []byte("\xff\xff"), "empty": nil} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		ok   bool
	}{{"good", true}, {"garbage", false}, {"empty", false}, {"missing", false}} {
		f, err := Factory{}.Compile(env(), decode(t, conf(readsAll, fmt.Sprintf(`"protoDescriptorFile":%q`, filepath.Join(dir, tt.name)))), nil)
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err == nil {
			closeFilter(f)
		}
	}
	if _, err := (Factory{}).Decode(filters.Any{TypeURL: TypeURL, Value: []byte(conf(readsAll, `"protoDescriptorInline":"/////w=="`)), JSON: true}, nil); err == nil {
		t.Error("garbage was accepted inline")
	}
}

// FuzzGRPCBody: a request is answered or goes on, and then with the body it
// came with.
func FuzzGRPCBody(f *testing.F) {
	fl := compileJSON(f, env(), conf(readsAll, `"protoDescriptorInline":"`+base64.StdEncoding.EncodeToString(descriptors(f))+`"`), "").(*filter)
	f.Add(frame(0, "\x0a\x01a"), "gzip")
	f.Add(frame(1, zipped(f, "\x0a\x01a")), "gzip")
	f.Add(frame(0, "")+frame(0, ""), "")
	f.Fuzz(func(t *testing.T, body, coding string) {
		r := request{method: "POST", path: "/shop.Orders/Put", header: [][2]string{{"content-type", "application/grpc"}, {"grpc-encoding", coding}}, body: []string{body}}
		if u, res := run(t, fl, r.stream()); u.called == res.Local || u.called && u.body != body {
			t.Fatalf("called %v, local %v", u.called, res.Local)
		}
	})
}
