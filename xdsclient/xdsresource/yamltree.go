package xdsresource

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// node is one value of a YAML or JSON document. line is 0 if unknown.
type node struct {
	line   int
	kind   nodeKind
	scalar any // nil, bool, string or json.Number
	keys   []string
	values []*node // of a list or a map
}

type nodeKind uint8

const (
	scalarNode nodeKind = iota
	listNode
	mapNode
)

const (
	maxNodeDepth = 200
	// maxAliased bounds the nodes that aliases expand to.
	maxAliased = 64 << 10
)

// parseTree parses doc as JSON if it is, else as one YAML document.
func parseTree(doc []byte) (*node, error) {
	if t := bytes.TrimLeft(doc, " \t\r\n"); len(t) > 0 && (t[0] == '{' || t[0] == '[') {
		p := jsonParser{doc: doc, dec: json.NewDecoder(bytes.NewReader(doc)), line: 1}
		p.dec.UseNumber()
		n, err := p.value(0)
		if err == nil {
			if _, err := p.dec.Token(); errors.Is(err, io.EOF) {
				return n, nil
			}
		}
	}
	var root yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(doc))
	if err := dec.Decode(&root); errors.Is(err, io.EOF) {
		return &node{kind: mapNode}, nil
	} else if err != nil {
		return nil, locate(doc, err)
	}
	if err := dec.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one YAML document: split the file at ---")
	}
	c := yamlConverter{}
	return c.convert(&root, 0)
}

// maxPrefixes bounds the search of locate.
const maxPrefixes = 500

// locate puts the line on which the structure breaks into a syntax error: the
// YAML library names the one where the surrounding collection began. The line
// after the longest prefix of whole lines that parses is the one.
func locate(doc []byte, err error) error {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		if _, m, ok := strings.Cut(rest, ": "); ok {
			msg = m
		}
	}
	end := len(doc)
	for range maxPrefixes {
		end = bytes.LastIndexByte(doc[:end], '\n')
		if end < 0 {
			return fmt.Errorf("line 1: not valid YAML: %s", msg)
		}
		var n yaml.Node
		if yaml.Unmarshal(doc[:end+1], &n) == nil {
			return fmt.Errorf("line %d: not valid YAML: %s", 2+bytes.Count(doc[:end], []byte("\n")), msg)
		}
	}
	return err
}

// jsonParser builds nodes from JSON, tracking lines.
type jsonParser struct {
	doc  []byte
	dec  *json.Decoder
	off  int
	line int
}

func (p *jsonParser) lineNow() int {
	if at := int(p.dec.InputOffset()); at > p.off {
		p.line += bytes.Count(p.doc[p.off:at], []byte("\n"))
		p.off = at
	}
	return p.line
}

func (p *jsonParser) value(depth int) (*node, error) {
	if depth > maxNodeDepth {
		return nil, fmt.Errorf("nested more than %d deep", maxNodeDepth)
	}
	t, err := p.dec.Token()
	if err != nil {
		return nil, err
	}
	n := &node{line: p.lineNow()}
	d, ok := t.(json.Delim)
	if !ok {
		n.scalar = t
		return n, nil
	}
	n.kind = listNode
	if d == '{' {
		n.kind = mapNode
	}
	for p.dec.More() {
		if d == '{' {
			k, err := p.dec.Token()
			if err != nil {
				return nil, err
			}
			n.keys = append(n.keys, fmt.Sprint(k))
		}
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		n.values = append(n.values, v)
	}
	_, err = p.dec.Token()
	return n, err
}

// yamlConverter turns yaml nodes into ours, bounding what aliases expand to.
type yamlConverter struct {
	aliases int // that we are inside of
	aliased int // nodes made inside of aliases
}

func (c *yamlConverter) convert(y *yaml.Node, depth int) (*node, error) {
	if c.aliases > 0 {
		c.aliased++
	}
	if depth > maxNodeDepth || c.aliased > maxAliased {
		return nil, fmt.Errorf("line %d: nested too deep, or too large with aliases expanded", y.Line)
	}
	n := &node{line: y.Line}
	switch y.Kind {
	case yaml.DocumentNode:
		return c.convert(y.Content[0], depth+1)
	case yaml.AliasNode:
		c.aliases++
		defer func() { c.aliases-- }()
		return c.convert(y.Alias, depth+1)
	case yaml.SequenceNode:
		n.kind = listNode
		for _, e := range y.Content {
			v, err := c.convert(e, depth+1)
			if err != nil {
				return nil, err
			}
			n.values = append(n.values, v)
		}
	case yaml.MappingNode:
		n.kind = mapNode
		for i := 0; i+1 < len(y.Content); i += 2 {
			v, err := c.convert(y.Content[i+1], depth+1)
			if err != nil {
				return nil, err
			}
			n.keys = append(n.keys, y.Content[i].Value)
			n.values = append(n.values, v)
		}
	case yaml.ScalarNode:
		return n, c.scalar(n, y)
	}
	return n, nil
}

func (*yamlConverter) scalar(n *node, y *yaml.Node) error {
	switch y.ShortTag() {
	case "!!null":
	case "!!bool":
		var b bool
		if err := y.Decode(&b); err != nil {
			return err
		}
		n.scalar = b
	case "!!int":
		var i int64
		if err := y.Decode(&i); err == nil {
			n.scalar = json.Number(strconv.FormatInt(i, 10))
			return nil
		}
		var u uint64
		if err := y.Decode(&u); err != nil {
			return err
		}
		n.scalar = json.Number(strconv.FormatUint(u, 10))
	case "!!float":
		var f float64
		if err := y.Decode(&f); err != nil {
			return err
		}
		b, err := json.Marshal(f)
		if err != nil { // .inf and .nan
			n.scalar = map[bool]string{true: "Infinity", false: "-Infinity"}[f > 0]
			if f != f {
				n.scalar = "NaN"
			}
			return nil
		}
		n.scalar = json.Number(b)
	default:
		n.scalar = y.Value
	}
	return nil
}

// plain returns n as encoding/json would have it.
func (n *node) plain() any {
	switch n.kind {
	case listNode:
		out := make([]any, 0, len(n.values))
		for _, v := range n.values {
			out = append(out, v.plain())
		}
		return out
	case mapNode:
		out := make(map[string]any, len(n.keys))
		for i, k := range n.keys {
			out[k] = n.values[i].plain()
		}
		return out
	case scalarNode:
	}
	return n.scalar
}

// get returns the value of a key, nil if it isn't there.
func (n *node) get(key string) *node {
	if i := slices.Index(n.keys, key); i >= 0 && n.kind == mapNode {
		return n.values[i]
	}
	return nil
}

// field is get for a field name in either form.
func (n *node) field(name string) *node {
	if v := n.get(name); v != nil || n.kind != mapNode {
		return v
	}
	for i, k := range n.keys {
		if snake(k) == name {
			return n.values[i]
		}
	}
	return nil
}

// without returns a copy of a map without one key.
func (n *node) without(key string) *node {
	out := &node{line: n.line, kind: n.kind}
	for i, k := range n.keys {
		if k != key {
			out.keys, out.values = append(out.keys, k), append(out.values, n.values[i])
		}
	}
	return out
}

// closest returns the candidate most like word, "" if none is near.
func closest(word string, candidates []string) string {
	best, bestDist := "", 1+max(2, len(word)/3)
	for _, c := range candidates {
		if d := editDistance(strings.ToLower(word), strings.ToLower(c)); d < bestDist {
			best, bestDist = c, d
		}
	}
	return best
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return max(len(a), len(b))
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost++
			}
			diag = row[j+1]
			row[j+1] = min(cost, row[j]+1, diag+1)
		}
	}
	return row[len(b)]
}
