package message_test

import (
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/message"
)

func TestCompactKeepsFieldsAndTheStringsThatWereRead(t *testing.T) {
	var h message.Header
	h.Add(message.Method, "CONNECT")
	h.AddBytes([]byte("baggage"), []byte("k=v"))
	h.AddField(message.Field{Name: "authorization", Value: h.Intern([]byte("secret")), NeverIndex: true})
	h.KeepName([]byte("Baggage"))
	read := h.Get("baggage")
	h.Compact()
	h.Add("later", "x")
	if h.Len() != 4 || h.Get(message.Method) != "CONNECT" || h.Get("baggage") != "k=v" || !h.At(2).NeverIndex || h.Get("later") != "x" {
		t.Errorf("%+v", h)
	}
	if name, ok := h.KeptName("baggage"); !ok || name != "Baggage" {
		t.Error(name, ok)
	}
	h.Reset()
	h.AddBytes([]byte("other"), []byte("zzzzzzzzzzzzzzzzzzzzzzzzz"))
	if read != "k=v" {
		t.Errorf("a string that was read became %q", read)
	}
	var empty message.Header
	empty.Compact()
	empty.Add("a", "b")
	if empty.Get("a") != "b" {
		t.Error("an empty header is of use no more")
	}
}
