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

func TestAHeaderIsPackedWithoutAField(t *testing.T) {
	var h, back Header
	for _, n := range []string{"a", "x-request-id", "b", "x-request-id"} {
		h.Add(n, "value of "+n)
	}
	h.KeepName([]byte("A"))
	p := h.PackWithout("x-request-id")
	back.Unpack(p)
	if len(back.fields) != 2 || back.Get("a") != "value of a" || back.Get("b") != "value of b" || len(back.kept) != 1 {
		t.Errorf("%v, kept %v", back.fields, back.kept)
	}
	var less Header
	less.Add("a", "value of a")
	less.Add("b", "value of b")
	less.KeepName([]byte("A"))
	if p != less.Pack() {
		t.Error("what is left is not equal to the same without it")
	}
	if h.Pack() != h.PackWithout("") || p.Len() == 0 || (Packed{}).Len() != 0 {
		t.Error("length or the whole")
	}
}
