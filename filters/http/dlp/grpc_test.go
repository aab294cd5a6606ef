package dlp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

func grpcFrame(flag byte, payload []byte) string {
	b := make([]byte, 5, 5+len(payload))
	b[0] = flag
	binary.BigEndian.PutUint32(b[1:], uint32(len(payload)))
	return string(append(b, payload...))
}

func grpcRequest(body []string, coding string) request {
	h := [][2]string{{"content-type", "application/grpc"}}
	if coding != "" {
		h = append(h, [2]string{"grpc-encoding", coding})
	}
	return request{header: h, body: &pieces{p: body}, grpc: true}
}

// message1 is {1: text, 2: {3: mail}, 4: 150}; the lengths of its strings are
// letters and digits, so that a careless mask breaks it.
func message1(text, mail string) []byte {
	inner := protowire.AppendString(protowire.AppendTag(nil, 3, protowire.BytesType), mail)
	b := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), text)
	b = protowire.AppendBytes(protowire.AppendTag(b, 2, protowire.BytesType), inner)
	return protowire.AppendVarint(protowire.AppendTag(b, 4, protowire.VarintType), 150)
}

func TestGRPCMessagesStayWellFormed(t *testing.T) {
	mail := "somebody.with.a.rather.long.name@mail.example.com" // 49 bytes: the length is "1"
	plain := message1("pay "+card+" now", mail)
	want := message1("pay "+masked+" now", "********.****.*.******.****.****@****.*******.***")
	body := grpcFrame(0, plain) + grpcFrame(0, nil) + grpcFrame(0, message1("clean", "nobody"))
	wantBody := grpcFrame(0, want) + grpcFrame(0, nil) + grpcFrame(0, message1("clean", "nobody"))
	replaced := grpcFrame(0, message1("pay [CREDIT_CARD_NUMBER] now", "[EMAIL_ADDRESS]")) + grpcFrame(0, nil) + grpcFrame(0, message1("clean", "nobody"))
	for action, want := range map[string]string{"MASK": wantBody, "REPLACE": replaced} {
		for _, n := range []int{1, 2, 5, 0} {
			got := compile(t, one(action), "").run(t, grpcRequest(split(body, n), ""), nil)
			if got.status != 200 || got.u.body != want {
				t.Errorf("%s in %d pieces:\n got %q\nwant %q", action, n, got.u.body, want)
			}
		}
	}
	// Text, and what may be text, outside a message.
	got := compile(t, one("REPLACE"), "").run(t, grpcRequest([]string{grpcFrame(0, []byte(`{"c":"`+card+`"}`))}, ""), nil)
	if want := grpcFrame(0, []byte(`{"c":"[CREDIT_CARD_NUMBER]"}`)); got.u.body != want {
		t.Errorf("JSON: %q, want %q", got.u.body, want)
	}
	if got := compile(t, one("REPLACE"), "").run(t, request{header: [][2]string{{"content-type", "application/grpc"}, {"content-length", "70"}}, body: &pieces{p: []string{body}}, grpc: true}, nil); got.u.header["content-length"] == "70" {
		t.Error("the length of the body before it was edited")
	}
	x := compile(t, one("REPORT"), "")
	if got = x.run(t, grpcRequest([]string{body}, ""), nil); got.u.body != body || strings.Count(x.log.String(), `"count":1`) != 2 {
		t.Errorf("report: %s", x.log)
	}
}

func TestGRPCBlocks(t *testing.T) {
	body := grpcFrame(0, message1("clean", "nobody")) + grpcFrame(0, message1("pay "+card, "x"))
	got := compile(t, one("BLOCK"), "").run(t, grpcRequest(split(body, 4), ""), nil)
	if got.status != 200 || got.header["grpc-status"] != "7" || strings.Contains(got.u.body, card) || got.s.Info.Details != "dlp_blocked{CREDIT_CARD_NUMBER}" {
		t.Errorf("%v, details %q, upstream %q", got.header, got.s.Info.Details, got.u.body)
	}
	resp := &upstream{response: [][2]string{{"content-type", "application/grpc"}}, answer: &pieces{p: split(body, 3)}}
	got = compile(t, one("BLOCK"), "").run(t, grpcRequest([]string{grpcFrame(0, nil)}, ""), resp)
	if got.bodyErr == nil || strings.Contains(got.body, card) || !strings.HasPrefix(got.body, grpcFrame(0, message1("clean", "nobody"))) {
		t.Errorf("error %v, client %q", got.bodyErr, got.body)
	}
}

func TestGRPCEvasions(t *testing.T) {
	long := strings.Repeat("lorem ipsum ", 8000)
	for name, tt := range map[string]struct {
		body, coding string
		details      string
	}{
		"JSON instead of protobuf":    {grpcFrame(0, []byte(`{"c":"`+card+`"}`)), "", "dlp_blocked{CREDIT_CARD_NUMBER}"},
		"text that parses as a field": {grpcFrame(0, message1("\"\x20"+strings.Repeat("x", 23)+" "+card+" ", "m")), "", "dlp_blocked{CREDIT_CARD_NUMBER}"},
		"beyond the window":           {grpcFrame(0, []byte(long+card+" "+long)), "", "dlp_blocked{CREDIT_CARD_NUMBER}"},
		"compressed":                  {grpcFrame(1, []byte(encode(t, "gzip", string(message1(card, "m"))))), "gzip", "dlp_blocked{CREDIT_CARD_NUMBER}"},
		"compressed unreadably":       {grpcFrame(1, []byte("abc")), "snappy", "dlp_uninspectable{compressed_grpc_message}"},
		"compressed without a name":   {grpcFrame(1, []byte(encode(t, "gzip", "x"))), "", "dlp_uninspectable{compressed_grpc_message}"},
		"a torn message":              {grpcFrame(0, []byte("abcdef"))[:8], "", "dlp_uninspectable{torn_grpc_message}"},
		"a compressed bomb":           {grpcFrame(1, []byte(encode(t, "gzip", strings.Repeat("\x00", 8<<20)))), "gzip", "dlp_uninspectable{compressed_grpc_message}"},
	} {
		for _, n := range []int{1, 9} {
			got := compile(t, one("BLOCK"), "").run(t, grpcRequest(split(tt.body, n), tt.coding), nil)
			if got.s.Info.Details != tt.details || strings.Contains(got.u.body, card) {
				t.Errorf("%s: details %q, want %q", name, got.s.Info.Details, tt.details)
			}
		}
	}
}

// TestCompressedMessagesStayCompressed edits what is in them, and leaves those
// alone in which nothing is found.
func TestCompressedMessagesStayCompressed(t *testing.T) {
	for as, coding := range map[string]string{"gzip": "gzip", "zlib": "deflate", "flate": "deflate", "br": "br", "zstd": "zstd"} {
		clean := grpcFrame(1, []byte(encode(t, as, string(message1("clean", "m")))))
		body := clean + grpcFrame(1, []byte(encode(t, as, string(message1(card, "m"))))) + clean
		for action, want := range map[string]string{"MASK": masked, "REPLACE": "[CREDIT_CARD_NUMBER]", "REPORT": card} {
			r := grpcRequest(split(body, 5), coding)
			r.header = append(r.header, [2]string{"content-length", fmt.Sprint(len(body))})
			got := compile(t, one(action), "").run(t, r, nil)
			if got.status != 200 || !strings.HasPrefix(got.u.body, clean) || !strings.HasSuffix(got.u.body, clean) {
				t.Errorf("%s, %s: status %d, %s, upstream got %q", action, coding, got.status, got.s.Info.Details, got.u.body)
				continue
			}
			m := got.u.body[len(clean) : len(got.u.body)-len(clean)]
			if m[0] != 1 || int(binary.BigEndian.Uint32([]byte(m[1:]))) != len(m)-prefixLen || decode(t, as, m[prefixLen:]) != string(message1(want, "m")) {
				t.Errorf("%s, %s: %q", action, coding, m)
			}
			if cl, ok := got.u.header["content-length"]; ok && cl != fmt.Sprint(len(got.u.body)) {
				t.Errorf("%s, %s: content-length %s of %d bytes", action, coding, cl, len(got.u.body))
			}
		}
	}
}

// TestConnectStreams have the framing of gRPC, and a coding header of their own.
func TestConnectStreams(t *testing.T) {
	h := [][2]string{{"content-type", "application/connect+proto"}, {"connect-content-encoding", "gzip"}}
	body := grpcFrame(1, []byte(encode(t, "gzip", "clean"))) + grpcFrame(0, message1(card, "a@example.com")) + grpcFrame(2, []byte(`{"metadata":{"x":["a@example.com"]}}`))
	got := compile(t, one("REPLACE"), "").run(t, request{header: h, body: &pieces{p: split(body, 3)}}, nil)
	want := grpcFrame(1, []byte(encode(t, "gzip", "clean"))) + grpcFrame(0, message1("[CREDIT_CARD_NUMBER]", "[EMAIL_ADDRESS]")) + grpcFrame(2, []byte(`{"metadata":{"x":["[EMAIL_ADDRESS]"]}}`))
	if got.status != 200 || got.u.body != want {
		t.Errorf("status %d, upstream got %q\nwant %q", got.status, got.u.body, want)
	}
}

// FuzzGRPC: what upstream reads does not depend on how the body is cut, and
// masking makes nothing longer.
func FuzzGRPC(f *testing.F) {
	f.Add([]byte(grpcFrame(0, message1(card, "a@example.com"))), uint8(3))
	f.Add([]byte(grpcFrame(0, nil)+grpcFrame(1, []byte("x"))), uint8(1))
	x := compile(f, strings.Replace(one("MASK"), `{"rules"`, `{"onUninspectable":"PASS","rules"`, 1), "")
	f.Fuzz(func(t *testing.T, b []byte, n uint8) {
		if len(b) == 0 {
			return
		}
		whole := compileAndRead(x, []string{string(b)})
		cut := compileAndRead(x, split(string(b), int(n)))
		if whole != cut {
			t.Fatalf("in pieces %q, whole %q", cut, whole)
		}
		if whole != "error" && len(whole) > len(b) && !bytes.Contains(b, []byte{0x1f, 0x8b}) {
			t.Fatalf("%d bytes became %d", len(b), len(whole))
		}
	})
}

func compileAndRead(x *fixture, body []string) string {
	fl, ok := x.f.(*filter)
	if !ok {
		return "?"
	}
	in := fl.inspect(fl.cfg.request, "request")
	b := newBody(&pieces{p: body}, newGRPCSource(&pieces{p: body}, in, "gzip", fl.cfg.window), in, nil)
	defer b.Close()
	out, err := readAll(b)
	if err != nil {
		return "error"
	}
	return out
}
