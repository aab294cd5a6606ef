// Package bypass asks a running Fairlead, with policies as istiod writes them,
// for something that they guard, in every spelling that a back end might take
// for the same: behind nginx, behind Go's file server and behind a handler
// that takes a backslash for a slash. A spelling that brings the guarded text is a bypass;
// there must be none. The same spellings without a policy show that the back
// ends do fall for many of them.
package bypass
