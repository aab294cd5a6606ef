package message

import (
	"reflect"
	"strings"
	"testing"
)

func TestAPackedHeaderLosesNothing(t *testing.T) {
	var all Header
	for _, n := range packedNames {
		all.Add(n, "value of "+n)
	}
	all.AddField(Field{Name: "cookie", Value: "secret", NeverIndex: true})
	all.AddField(Field{Name: Authority, Value: strings.Repeat("long", 1000), NeverIndex: true})
	all.Add("x-empty", "")
	all.AddBytes([]byte("X-Bytes"), []byte{0x80, 0xff})
	all.KeepName([]byte("X-Bytes"))
	all.KeepName([]byte("Host"))
	for _, h := range []*Header{{}, {fields: []Field{{Name: Status, Value: "200"}}}, &all} {
		p := h.Pack()
		var back Header
		back.AddBytes([]byte("old"), []byte("value"))
		back.Unpack(p)
		if got, want := append([]Field{}, back.fields...), append([]Field{}, h.fields...); !reflect.DeepEqual(got, want) {
			t.Errorf("got %v\nwant %v", got, want)
		}
		if got, want := append([]string{}, back.kept...), append([]string{}, h.kept...); !reflect.DeepEqual(got, want) {
			t.Errorf("got %v\nwant %v", got, want)
		}
	}
}

func TestAPackedHeaderDependsOnNothing(t *testing.T) {
	var h Header
	h.AddBytes([]byte("x-request-id"), []byte("one"))
	p := h.Pack()
	h.Reset()
	h.AddBytes([]byte("x-request-id"), []byte("two"))
	var back Header
	back.Unpack(p)
	if got := back.Get("x-request-id"); got != "one" {
		t.Errorf("got %q", got)
	}
}
