package dlp

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/http/dlp/dlppb"
	"github.com/fairlead-mesh/fairlead/filters/internal/dlp"
)

func TestDecodeErrors(t *testing.T) {
	rule := func(s string) string { return `{"rules":[{"name":"r","infoTypes":["EMAIL_ADDRESS"]` + s + `}]}` }
	for name, js := range map[string]string{
		"no rules":               `{}`,
		"no name":                `{"rules":[{"infoTypes":["EMAIL_ADDRESS"]}]}`,
		"no detector":            `{"rules":[{"name":"r"}]}`,
		"a name used twice":      `{"rules":[{"name":"r","infoTypes":["EMAIL_ADDRESS"]},{"name":"r","infoTypes":["EMAIL_ADDRESS"]}]}`,
		"an unknown detector":    `{"rules":[{"name":"r","infoTypes":["EMAIL"]}]}`,
		"an unknown field":       rule(`,"x":1`),
		"an unknown action":      rule(`,"action":"SHRED"`),
		"an unknown enum number": rule(`,"action":77`),
		"a broken regex":         rule(`,"regexes":[{"infoType":"X","pattern":"("}]`),
		"a regex for everything": rule(`,"regexes":[{"infoType":"X","pattern":".*x"}]`),
		"a regex without a type": rule(`,"regexes":[{"pattern":"abc"}]`),
		"a built-in name":        rule(`,"regexes":[{"infoType":"IBAN_CODE","pattern":"abc"}]`),
		"a name of another rule": `{"rules":[{"name":"a","words":[{"infoType":"X","words":["abc"]}]},{"name":"b","words":[{"infoType":"X","words":["abd"]}]}]}`,
		"a block status of 200":  rule(`,"blockStatus":200`),
		"a mask of two":          rule(`,"mask":{"character":"xx"}`),
		"a quote as mask":        rule(`,"mask":{"character":"\""}`),
		"a quote in a tag":       rule(`,"replacement":"\""`),
		"a header of framing":    rule(`,"addHeader":{"name":"Content-Length","value":"1"}`),
		"a header with a break":  rule(`,"addHeader":{"name":"x","value":"1\n2"}`),
		"too small a window":     strings.Replace(rule(""), `{"rules"`, `{"windowBytes":100,"rules"`, 1),
		"too large a ratio":      strings.Replace(rule(""), `{"rules"`, `{"maxDecompressionRatio":1000000,"rules"`, 1),
		"two keys":               strings.Replace(rule(""), `{"rules"`, `{"hashKey":"a","hashKeyFile":"b","rules"`, 1),
		"a broken allow pattern": strings.Replace(rule(""), `{"rules"`, `{"allowPatterns":["("],"rules"`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			if c, err := (Factory{}).Decode(filters.Any{TypeURL: TypeURL, Value: []byte(js), JSON: true}, nil); err == nil {
				t.Errorf("accepted: %+v", c)
			}
		})
	}
	b, _ := proto.Marshal(&dlppb.Config{Rules: []*dlppb.Rule{{Name: "r", InfoTypes: []string{"EMAIL_ADDRESS"}}}})
	if _, err := (Factory{}).Decode(filters.Any{TypeURL: TypeURL, Value: b}, nil); err != nil {
		t.Error(err)
	}
	if _, err := (Factory{}).Decode(filters.Any{TypeURL: TypeURL, Value: append(b, 0xf8, 0x7f, 1)}, nil); err == nil {
		t.Error("unknown fields on the wire accepted")
	}
}

func TestHashKeyFiles(t *testing.T) {
	name := filepath.Join(t.TempDir(), "key")
	js := strings.Replace(one("REPORT"), `{"rules"`, fmt.Sprintf(`{"hashKeyFile":%q,"rules"`, name), 1)
	c, err := Factory{}.Decode(filters.Any{TypeURL: TypeURL, Value: []byte(js), JSON: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		content string
		ok      bool
	}{{"", false}, {"short", false}, {"0123456789abcdef\n", true}} {
		if tt.content != "" {
			if err := os.WriteFile(name, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := (Factory{}).Compile(&filters.Env{Name: "x"}, c, nil); (err == nil) != tt.ok {
			t.Errorf("%q: %v", tt.content, err)
		}
	}
}

var update = flag.Bool("update", false, "write DETECTORS.md")

func TestTheListOfDetectorsIsComplete(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Detectors\n\nThe names that `info_types` takes.\n")
	for _, family := range []struct {
		name  string
		types []string
	}{{"Personal data (`ALL_PERSONAL_DATA`)", dlp.PersonalTypes()}, {"Credentials (`ALL_SECRETS`)", dlp.SecretTypes()}} {
		fmt.Fprintf(&b, "\n## %s: %d\n\n", family.name, len(family.types))
		for _, n := range family.types {
			fmt.Fprintf(&b, "- %s\n", n)
		}
	}
	if *update {
		if err := os.WriteFile("DETECTORS.md", []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("DETECTORS.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != b.String() {
		t.Error("DETECTORS.md is not what the code has: run go test -run ListOfDetectors -update")
	}
}

func TestREADME(t *testing.T) {
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	var visit func(v any)
	visit = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				visit(e)
			}
		case map[string]any:
			kind, _ := v["@type"].(string)
			inner := v
			if strings.HasSuffix(kind, "TypedStruct") {
				kind, _ = v["type_url"].(string)
				inner, _ = v["value"].(map[string]any)
			}
			if kind != TypeURL && kind != PerRouteTypeURL {
				for _, e := range v {
					visit(e)
				}
				return
			}
			n++
			delete(inner, "@type")
			js, _ := json.Marshal(inner)
			decode := Factory{}.Decode
			if kind == PerRouteTypeURL {
				decode = Factory{}.DecodeOverride
			}
			if _, err := decode(filters.Any{TypeURL: kind, Value: js, JSON: true}, nil); err != nil {
				t.Errorf("%v in %s", err, js)
			}
		}
	}
	for _, block := range strings.Split(string(b), "```yaml\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		var doc map[string]any
		if err := yaml.Unmarshal([]byte(block), &doc); err != nil {
			t.Fatal(err)
		}
		visit(doc)
	}
	if n != 4 {
		t.Errorf("%d configurations found in README.md: want 4", n)
	}
}
