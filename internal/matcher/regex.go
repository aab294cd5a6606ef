package matcher

import (
	"fmt"
	"regexp"
)

// MaxRegexBytes bounds the source of a regular expression from configuration.
const MaxRegexBytes = 8 << 10

// CompileSafeRegex compiles an RE2 expression that must match the whole
// string, as Envoy's safe_regex does.
func CompileSafeRegex(src string) (*regexp.Regexp, error) {
	if len(src) > MaxRegexBytes {
		return nil, fmt.Errorf("regex of %d bytes exceeds the limit of %d", len(src), MaxRegexBytes)
	}
	re, err := regexp.Compile(`^(?s:` + src + `)$`)
	if err != nil {
		return nil, fmt.Errorf("regex %q: %w", src, err)
	}
	return re, nil
}
