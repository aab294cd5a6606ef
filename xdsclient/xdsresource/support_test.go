package xdsresource

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	_ "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3" // its messages are in the table, too
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

var update = flag.Bool("update", false, "rewrite generated files")

func descriptor(t *testing.T, name protoreflect.FullName) protoreflect.MessageDescriptor {
	t.Helper()
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	md, ok := d.(protoreflect.MessageDescriptor)
	if !ok {
		t.Fatalf("%s is no message", name)
	}
	return md
}

// leaf reports whether values of a message type are read as a whole.
func leaf(name protoreflect.FullName) bool {
	return slices.Contains(whole, name) || strings.HasPrefix(string(name), "google.protobuf.") ||
		slices.Contains([]protoreflect.FullName{
			"envoy.type.v3.Percent", "envoy.type.v3.FractionalPercent", "envoy.type.v3.Int32Range",
		}, name)
}

func TestEveryFieldIsClassifiedOnce(t *testing.T) {
	known := map[protoreflect.FullName]bool{}
	for _, m := range tables() {
		if known[m.name] {
			t.Errorf("%s is listed twice", m.name)
		}
		known[m.name] = true
	}
	fields := 0
	for _, m := range tables() {
		md := descriptor(t, m.name)
		seen := map[string]bool{}
		claim := func(f string) {
			f = strings.TrimSuffix(f, "?")
			if md.Fields().ByName(protoreflect.Name(f)) == nil {
				t.Errorf("%s has no field %s", m.name, f)
			}
			if seen[f] {
				t.Errorf("%s: %s is classified twice", m.name, f)
			}
			seen[f] = true
		}
		for f := range strings.FieldsSeq(m.supported) {
			claim(f)
			fd := md.Fields().ByName(protoreflect.Name(f))
			if fd == nil || fd.Message() == nil || fd.IsMap() {
				continue
			}
			if sub := fd.Message().FullName(); !known[sub] && !leaf(sub) {
				t.Errorf("%s.%s is supported, but %s is not classified", m.name, f, sub)
			}
		}
		for _, ns := range []notes{m.moot, m.ignored, m.closed, m.rejected} {
			for f, reason := range ns {
				claim(f)
				if reason == "" {
					t.Errorf("%s: %s has no reason", m.name, f)
				}
			}
		}
		for i := range md.Fields().Len() {
			if f := string(md.Fields().Get(i).Name()); !seen[f] {
				t.Errorf("%s: %s is not classified", m.name, f)
			}
		}
		fields += md.Fields().Len()
	}
	t.Logf("%d messages, %d fields", len(known), fields)
}

// document renders docs/xds-support.md.
func document(t *testing.T) string {
	var b strings.Builder
	b.WriteString(`# What of Envoy's API is executed

<!-- Generated: go test ./xdsclient/xdsresource -run TestSupportDocument -update -->

Every field of the messages below that is set does one of these things:

| | |
|---|---|
| yes | it is executed |
| moot | there is nothing to execute here; behaviour is what the field asks for |
| ignored | it is accepted without effect, and listed by ` + "`/config_dump`" + ` and ` + "`config validate`" + ` |
| closed | the part that holds it (route, filter chain, TLS context, cluster) refuses traffic; the rest works |
| rejected | the resource is rejected (NACK); its last good version stays |

A field that is newer than this table is reported as ignored, and in a message marked *strict* closed. Filters are
described in their folders under ` + "`filters/`" + `; a filter that isn't there, or whose configuration can't be executed, closes its
filter chain unless it is marked optional, and a WebAssembly module that is here and can't start rejects its resource. Matchers, access
log filters and format strings are executed as a whole or are an error. Constraints of the API definition (protoc-gen-validate) apply as in Envoy.
Header edits are of heads, as in Envoy: trailers of the same names pass as they came, so that an origin must not take trailers for headers.

`)
	for _, m := range tables() {
		md := descriptor(t, m.name)
		if md.Fields().Len() == 0 {
			continue
		}
		fmt.Fprintf(&b, "## %s\n\n", m.name)
		if m.strict {
			b.WriteString("*strict*\n\n")
		}
		b.WriteString("| field | | |\n|---|---|---|\n")
		c := bound(md)
		for _, f := range c.fields {
			reason := f.reason
			if f.nonzero {
				reason += " (unless zero)"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.fd.Name(), className[f.class], reason)
		}
		b.WriteString("\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

var className = map[class]string{
	unclassified: "?", supported: "yes", moot: "moot", ignored: "ignored", closed: "closed", rejected: "rejected",
}

func TestSupportDocumentIsCurrent(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "xds-support.md")
	want := document(t)
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/xds-support.md is not current: run go test ./xdsclient/xdsresource -run TestSupportDocument -update")
	}
}
